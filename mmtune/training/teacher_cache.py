"""Compute the outputs of a recipe's `teachers` on the training rows once, and store them beside the shards.

    teachers:
      big: {model: hf:DIR}                                    embeddings of all rows, for a guide or any distillation loss
      judge: {scorer: cross_encoder, options: {model: DIR}}   one score per pair; or scorer: matcher, or package.module:Class
      rated: {scores: scores.parquet}                         a file with columns query_id, item_id, score (and direction "a->b")

Outputs of the first two kinds are stored in DATA/teachers/<fingerprint, or name and fingerprint>/; the key `out` sets another
directory than DATA/teachers. They are not computed again for the same teacher and rows. A job that was killed continues with
the part that it was computing.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from mmtune.contracts import Pair
from mmtune.data.remote.remote_files import is_remote
from mmtune.errors import DataError, MmtuneError, RecipeError
from mmtune.recipe.block import check
from mmtune.recipe.teachers_block import ModelTeacher, ScorerTeacher, ScoresTeacher
from mmtune.recipe.teachers_block import Teacher as RecipeTeacher
from mmtune.training.teacher_outputs import Teacher, TeacherVectors
from mmtune.training.teacher_score_files import teacher_from_file
from mmtune.training.teacher_scoring import teacher_from_scorer

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

_TEACHERS: TypeAdapter[dict[str, ModelTeacher | ScorerTeacher | ScoresTeacher]] = TypeAdapter(dict[str, RecipeTeacher])


def build_teachers(
    config: object,
    data: "WeightedConcat",
    pairs: Sequence[Pair],
    *,
    quiet: bool = False,
    needed: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Teacher]:
    """Return the outputs of every teacher, in memory. `config` is a recipe's `teachers`, as parsed blocks or plain data.

    needed: {teacher: {modality: recipe key of the term that needs it}}, checked before a teacher embeds anything

    Raises RecipeError, naming the key, for a teacher that cannot be used, and DataError, naming row or file, for bad outputs.
    """
    teachers: dict[str, Teacher] = {}
    for name, spec in check(_TEACHERS, config, "teachers").items():
        if isinstance(spec, ModelTeacher):
            teachers[name] = _teacher_from_model(name, spec, data, pairs, quiet, (needed or {}).get(name, {}))
        elif isinstance(spec, ScorerTeacher):
            folder = teachers_folder(data.sets[0], spec.out, f"teachers.{name}")
            teachers[name] = teacher_from_scorer(name, spec, data, pairs, folder, quiet)
        else:
            teachers[name] = teacher_from_file(name, spec.scores, data, pairs)
    return teachers


def teachers_folder(data: "Data", out: str | None, key: str) -> Path:
    """Return the directory for teachers' outputs on `data`: `out` if given, otherwise `teachers` beside the shards.

    Raises RecipeError if `out` is not given and the shards are remote.
    """
    if out:
        return Path(out)
    if is_remote(data.spec):
        raise RecipeError(f"{key}.out: {data.spec} is remote; set this key to a local directory for the teacher's outputs")
    return Path(data.shards[0].path).parent / "teachers"


def _teacher_from_model(
    name: str, spec: ModelTeacher, data: "WeightedConcat", pairs: Sequence[Pair], quiet: bool, needed: Mapping[str, str]
) -> TeacherVectors:
    """Embed the training rows with another dual encoder, store the embeddings, and read them."""
    from mmtune.embedding.parquet_parts import embed
    from mmtune.model.artifact import load

    try:
        model = load(spec.model)
    except MmtuneError as e:
        raise RecipeError(f"teachers.{name}.model: {e}") from None
    wanted = [m for m in data.modalities if m in {n for p in pairs for n in p} and m in model.towers]
    if not wanted:
        raise RecipeError(
            f"teachers.{name}.model: {spec.model} has {', '.join(model.towers)}, none of the modalities that are trained here"
        )
    for m, key in needed.items():
        if m in data.modalities and m not in model.towers:
            raise RecipeError(
                f"{key}: {name!r} has no {m} tower, only {', '.join(model.towers)}; use another teacher or other pairs"
            )
    fingerprint = model.fingerprint
    vectors: dict[str, list[np.ndarray]] = {m: [] for m in wanted}
    vector_of_row = {m: np.full(len(data), -1, np.int64) for m in wanted}
    folders = Counter(teachers_folder(d, spec.out, f"teachers.{name}") for d in data.sets)
    for number, dataset in enumerate(data.sets):
        present = [m for m in wanted if m in dataset.modalities]
        if not present:
            continue
        folder = teachers_folder(dataset, spec.out, f"teachers.{name}") / fingerprint[:16]
        if folders[folder.parent] > 1:
            folder = folder / str(number)
        meta = embed(model, dataset, folder, present, batch_size=spec.batch_size, quiet=quiet)
        row_of_id = {i: n for n, i in enumerate(dataset.ids)}
        for m in present:
            start = sum(len(v) for v in vectors[m])
            ids, part = _read_vectors(folder / m, meta.counts[m].parts, fingerprint)
            rows = data.starts[number] + np.array([row_of_id[i] for i in ids], np.int64)
            vector_of_row[m][rows] = start + np.arange(len(ids))
            vectors[m].append(part)
    return TeacherVectors(name, {m: np.concatenate(v) for m, v in vectors.items()}, vector_of_row, fingerprint)


def _read_vectors(folder: Path, parts: int, fingerprint: str) -> tuple[list[str], np.ndarray]:
    """Return (row ids, embeddings [n, T]) of all parts. Raises DataError if a part was written by another model."""
    import pyarrow.parquet as pq

    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for number in range(parts):
        path = folder / f"part-{number:05d}.parquet"
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(b"fingerprint", b"").decode() != fingerprint:
            raise DataError(f"{path}: the embeddings are of another model; delete the directory to compute them again")
        ids += table["id"].to_pylist()
        if len(table):
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors.append(flat.reshape(len(table), -1))
    return ids, np.concatenate(vectors)
