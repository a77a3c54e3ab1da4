"""`teachers:` of a recipe -> their outputs on the training rows: computed once, stored beside the shards, fingerprinted.

    teachers:
      big: {model: hf:DIR}                                    vectors of every row: guide, feature, kl, score_mse, margin_mse
      judge: {scorer: cross_encoder, options: {model: DIR}}   a score a pair; or matcher, or package.module:Class
      rated: {scores: scores.parquet}                         a file with query_id, item_id, score (and direction "a->b")

The first two are stored in DATA/teachers/<name or fingerprint>/ (`out:` names another folder) and never computed again for
the same teacher and rows; a killed job continues with the part it was at.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from mmtune.contracts import Pair
from mmtune.data.shards.locate import is_remote
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


def build_teachers(config: object, data: "WeightedConcat", pairs: Sequence[Pair], *, quiet: bool = False) -> dict[str, Teacher]:
    """Every teacher of a recipe's `teachers`, typed or as plain data, with its outputs in memory.

    Raises RecipeError naming the key, DataError naming row or file.
    """
    teachers: dict[str, Teacher] = {}
    for name, spec in check(_TEACHERS, config, "teachers").items():
        if isinstance(spec, ModelTeacher):
            teachers[name] = _teacher_from_model(name, spec, data, pairs, quiet)
        elif isinstance(spec, ScorerTeacher):
            folder = teachers_folder(data.sets[0], spec.out, f"teachers.{name}")
            teachers[name] = teacher_from_scorer(name, spec, data, pairs, folder, quiet)
        else:
            teachers[name] = teacher_from_file(name, spec.scores, data, pairs)
    return teachers


def teachers_folder(data: "Data", out: str | None, key: str) -> Path:
    """The folder for teachers' outputs on `data`: `out`, or `teachers` next to its shards. RecipeError for remote shards."""
    if out:
        return Path(out)
    if is_remote(data.spec):
        raise RecipeError(f"{key}.out: {data.spec} is remote; name a folder here for the teacher's outputs")
    return Path(data.shards[0].path).parent / "teachers"


def _teacher_from_model(
    name: str, spec: ModelTeacher, data: "WeightedConcat", pairs: Sequence[Pair], quiet: bool
) -> TeacherVectors:
    """The vectors of another dual encoder, embedded by the usual path and read back."""
    from mmtune.embedding.parquet_parts import embed
    from mmtune.model.artifact import load

    try:
        model = load(spec.model)
    except MmtuneError as e:
        raise RecipeError(f"teachers.{name}.model: {e}") from None
    wanted = [m for m in data.modalities if m in {n for p in pairs for n in p} and m in model.towers]
    if not wanted:
        raise RecipeError(f"teachers.{name}.model: {spec.model} has {', '.join(model.towers)}: nothing that is trained here")
    fingerprint = model.fingerprint
    vectors: dict[str, list[np.ndarray]] = {m: [] for m in wanted}
    vector_of_row = {m: np.full(len(data), -1, np.int64) for m in wanted}
    for number, dataset in enumerate(data.sets):
        present = [m for m in wanted if m in dataset.modalities]
        if not present:
            continue
        folder = teachers_folder(dataset, spec.out, f"teachers.{name}") / fingerprint[:16]
        if spec.out and len(data.sets) > 1:
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
    """(row ids, vectors [n, T]) of all parts. DataError for a part of another model."""
    import pyarrow.parquet as pq

    ids: list[str] = []
    vectors: list[np.ndarray] = []
    for number in range(parts):
        path = folder / f"part-{number:05d}.parquet"
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(b"fingerprint", b"").decode() != fingerprint:
            raise DataError(f"{path}: vectors of another model; delete the folder to compute them again")
        ids += table["id"].to_pylist()
        if len(table):
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors.append(flat.reshape(len(table), -1))
    return ids, np.concatenate(vectors)
