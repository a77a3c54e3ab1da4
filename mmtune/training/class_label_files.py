"""The classes of a run's losses on class labels, in the directory RUN/classes.

They are counted or listed once and read again when the run is resumed, also with another number of processes: class proxies belong to
class numbers. Of each term NUMBER there are NUMBER.parquet, the classes in the order of their numbers, and for counted classes
NUMBER.MODALITY.parquet, the contents whose rows do not all have the same class.
"""

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.contracts import JsonObject, Pair
from mmtune.data.loader.row_classes import KnownClasses
from mmtune.data.shards.class_values import class_label
from mmtune.data.shards.merge_classes import CountedClasses
from mmtune.data.shards.shard_classes import ClassQuery, json_hash, shard_identity
from mmtune.data.shards.stream_classes import check_column, count_streamed_classes, has_tables
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.errors import DataError, TrainingError
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.distributed import Processes
from mmtune.runtime.files import atomic_dir, read_json, write_json
from mmtune.runtime.format_number import check_format
from mmtune.training.checkpoint import LAST, Checkpoints
from mmtune.training.class_labels import AnyClassLabels, StreamedClassLabels, class_notes, count_classes, refuse_few
from mmtune.training.class_lists import NAMES, listed_classes
from mmtune.training.objective_spec import LossTerm, parse_terms

if TYPE_CHECKING:
    from mmtune.training.training_inputs import TrainingInputs

FOLDER, COUNTING, INFO = "classes", "classes.counting", "info.json"
"""In the run directory: the classes, and what was counted in single shards meanwhile."""
FORMAT = 1
"""The format number of RUN/classes."""


def open_class_labels(recipe: Recipe, inputs: "TrainingInputs", quiet: bool, processes: Processes) -> dict[str, AnyClassLabels]:
    """Return {number of a term: its classes} for terms whose classes are listed or whose data are streamed. All processes must call this.

    With random access, classes that are not listed are counted by `build_objective`.

    Raises RecipeError or DataError, which names the key, for lists and columns that cannot be used, and TrainingError if the classes are
    not those that the run was started with.
    """
    terms = {str(n): t for n, t in enumerate(parse_terms(recipe.objective, inputs.pairs)) if t.family == "class_label"}
    listed = {n: names for n, t in terms.items() if (names := listed_classes(t)) is not None}
    counted = {n: _query(t, inputs.pairs) for n, t in terms.items() if n not in listed} if inputs.is_streamed else {}
    if not listed and not counted:
        return {}
    folder = Path(recipe.run.dir) / FOLDER
    info: JsonObject = {"terms": {n: [t.label, [list(p) for p in _query(t, inputs.pairs).pairs]] for n, t in terms.items()}}
    info["listed"] = {n: json_hash(names) for n, names in listed.items()}
    if isinstance(inputs.data, StreamedSets):
        info["data"] = json_hash([shard_identity(s) for shards in inputs.data.sets for s in shards]) if counted else ""
        tables = has_tables(inputs.data)
        for n in (n for n in terms if n in listed or not tables):
            check_column(inputs.data, terms[n].label, f"{terms[n].key}.label")
    is_begun = Checkpoints(folder.with_name("checkpoints"), 0).exists(LAST)
    if not processes.broadcast(processes.is_main_process and _is_current(folder, info, is_begun)):
        results = _count(recipe, inputs, counted, quiet, processes)
        if processes.is_main_process:
            _write(folder, info, listed, dict(zip(counted, results, strict=True)))
    processes.barrier()
    return {n: _read(folder, n, terms[n], recipe, inputs, listed.get(n)) for n in [*listed, *counted]}


def _query(term: LossTerm, pairs: Sequence[Pair]) -> ClassQuery:
    return ClassQuery(term.label, tuple((a, b) for a, b in term.pairs or pairs))


def _is_current(folder: Path, info: JsonObject, is_begun: bool) -> bool:
    """Whether the classes in `folder` are those of `info`. Raises TrainingError if they must be, because the run has a checkpoint."""
    if not (folder / INFO).is_file():
        return False
    saved = read_info(folder)
    if is_begun:  # the loader checks the shards of a checkpoint, by what does not change when they are copied
        changed = [n for n, names in info["listed"].items() if saved["listed"].get(n) != names]
        if changed:
            raise TrainingError(
                f"objective[{changed[0]}].classes: the run to resume has other classes ({folder / changed[0]}.parquet); restore the list, "
                "or choose another run.dir"
            )
        return True
    return all(saved.get(key) == value for key, value in info.items())


def read_info(folder: Path) -> JsonObject:
    """What the classes in RUN/classes were made of. Raises TrainingError or DataError if the file cannot be read."""
    info = read_json(folder / INFO)
    check_format(info.get("format"), FORMAT, folder / INFO, TrainingError)
    return info


def _count(
    recipe: Recipe, inputs: "TrainingInputs", counted: Mapping[str, ClassQuery], quiet: bool, processes: Processes
) -> list[CountedClasses]:
    """Count the classes of streamed data in one pass. Returns them on rank 0."""
    if not isinstance(inputs.data, StreamedSets) or not counted:
        return []
    return count_streamed_classes(
        inputs.data,
        list(counted.values()),
        Path(recipe.run.dir) / COUNTING,
        readers=max(1, recipe.data.lanes // processes.world_size),
        skip_damaged=recipe.data.skip_bad,
        quiet=quiet,
        processes=processes,
    )


def _write(folder: Path, info: JsonObject, listed: Mapping[str, Sequence[str]], counted: Mapping[str, CountedClasses]) -> None:
    with atomic_dir(folder) as out:
        for n, names in listed.items():
            labels = np.array([class_label(name) for name in names], np.int64)
            pq.write_table(pa.table({NAMES: pa.array(names, pa.string()), "label": labels}), out / f"{n}.parquet")
        items = {}
        for n, classes in counted.items():
            pq.write_table(pa.table({NAMES: classes.names, "label": classes.labels}), out / f"{n}.parquet")
            items[n] = {m: [x.total, x.without, x.several] for m, x in classes.by_modality.items()}
            for m, x in classes.by_modality.items():
                pq.write_table(pa.table({"content": x.contents, "class": x.numbers}), out / f"{n}.{m}.parquet")
        write_json(out / INFO, {"format": FORMAT, "items": items, **info})
    with contextlib.suppress(OSError):
        shutil.rmtree(folder.with_name(COUNTING))


def _read(
    folder: Path, n: str, term: LossTerm, recipe: Recipe, inputs: "TrainingInputs", listed: Sequence[str] | None
) -> AnyClassLabels:
    """The classes of a term."""
    query, key = _query(term, inputs.pairs), f"{term.key}.label"
    if not isinstance(inputs.data, StreamedSets):
        return count_classes(inputs.data, term.label, query.pairs, key, listed, recipe.data.skip_bad)
    try:
        labels = _column(folder / f"{n}.parquet", "label")
        items = read_info(folder)["items"].get(n, {})
        contents = {
            m: (_column(folder / f"{n}.{m}.parquet", "content"), _column(folder / f"{n}.{m}.parquet", "class")) for m in items
        }
    except (OSError, ValueError, KeyError) as e:
        raise TrainingError(f"{folder}: cannot be read ({e}); delete it: the classes are then counted again") from None
    if not len(labels):
        check_column(inputs.data, term.label, key)
        raise DataError(f"{key}: no row of {inputs.data.spec} has a value of column {term.label!r}")
    refuse_few(key, term.label, inputs.data.spec, len(labels))
    order = np.argsort(labels, kind="stable")
    known = KnownClasses(term.key, term.label, query.pairs, labels[order], listed is not None)
    notes = class_notes(term.key, term.label, len(labels), {m: (a, b, c) for m, (a, b, c) in items.items()})
    return StreamedClassLabels(known, order, contents, notes)


def _column(path: Path, name: str) -> np.ndarray:
    """A column of numbers of a Parquet file, as an array that can be written to."""
    column = pq.read_table(path, columns=[name])[name]
    return np.array(column.combine_chunks().to_numpy() if column.num_chunks else [], np.int64)
