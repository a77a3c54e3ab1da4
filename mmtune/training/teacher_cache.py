"""`teachers:` of a recipe -> their outputs on the training rows: computed once, stored beside the shards, fingerprinted.

    teachers:
      big: {model: hf:DIR}                                    vectors of every row: guide, feature, kl, score_mse, margin_mse
      judge: {scorer: cross_encoder, options: {model: DIR}}   a score a pair; or matcher, or package.module:Class
      told: {scores: scores.parquet}                          a file with query_id, item_id, score (and direction "a->b")

The first two are stored in DATA/teachers/<name or fingerprint>/ (`out:` names another folder) and never computed again for
the same teacher and rows; a killed job goes on with the part it was at.
"""

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import TypeAdapter

from mmtune.contracts import Pair, direction
from mmtune.data.decode import decode_row
from mmtune.data.shards.locate import remote
from mmtune.errors import DataError, MmtuneError, RecipeError
from mmtune.recipe.block import check
from mmtune.recipe.teachers_block import ModelTeacher, ScorerTeacher, ScoresTeacher
from mmtune.recipe.teachers_block import Teacher as RecipeTeacher
from mmtune.runtime.files import atomic_open
from mmtune.runtime.plugins import nearest
from mmtune.runtime.progress import Progress
from mmtune.training.teacher_outputs import Teacher, TeacherScores, TeacherVectors

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

SCORERS = {
    "cross_encoder": "mmtune.backbones.cross_encoders:CrossEncoder",
    "matcher": "mmtune.backbones.cross_encoders:Matcher",
}
_TEACHERS: TypeAdapter[dict[str, ModelTeacher | ScorerTeacher | ScoresTeacher]] = TypeAdapter(dict[str, RecipeTeacher])
PART = 4096  # pairs a file: what a killed job may lose
MOST = 4_000_000
"""Pairs past which `candidates: all` is refused: it grows with the product of both sides."""


def build_teachers(config: object, data: "WeightedConcat", pairs: Sequence[Pair], *, quiet: bool = False) -> dict[str, Teacher]:
    """Every teacher of a recipe's `teachers`, typed or as plain data, ready to be looked up.

    Raises RecipeError naming the key, DataError naming row or file.
    """
    teachers: dict[str, Teacher] = {}
    for name, spec in check(_TEACHERS, config, "teachers").items():
        if isinstance(spec, ModelTeacher):
            teachers[name] = _vectors(name, spec, data, pairs, quiet)
        elif isinstance(spec, ScorerTeacher):
            teachers[name] = _scorer(name, spec, data, pairs, quiet)
        else:
            teachers[name] = _file(name, spec, data, pairs)
    return teachers


def beside(data: "Data", out: str | None, key: str) -> Path:
    """The folder for what is kept about `data`: `out`, or `teachers` next to its shards."""
    if out:
        return Path(out)
    if remote(data.spec):
        raise RecipeError(f"{key}.out: {data.spec} is remote; name a folder here for the teacher's outputs")
    return Path(data.shards[0].path).parent / "teachers"


# --- vectors ---------------------------------------------------------------------------------------------------------


def _vectors(name: str, spec: ModelTeacher, data: "WeightedConcat", pairs: Sequence[Pair], quiet: bool) -> TeacherVectors:
    from mmtune.embedding.parquet_parts import embed
    from mmtune.model.artifact import load

    try:
        model = load(spec.model)
    except MmtuneError as e:
        raise RecipeError(f"teachers.{name}.model: {e}") from None
    wanted = [m for m in data.modalities if m in {n for p in pairs for n in p} and m in model.towers]
    if not wanted:
        raise RecipeError(f"teachers.{name}.model: {spec.model} has {', '.join(model.towers)}: nothing that is trained here")
    mark = model.fingerprint
    vectors: dict[str, list[np.ndarray]] = {m: [] for m in wanted}
    row = {m: np.full(len(data), -1, np.int64) for m in wanted}
    for number, part in enumerate(data.sets):
        here = [m for m in wanted if m in part.modalities]
        if not here:
            continue
        folder = beside(part, spec.out, f"teachers.{name}") / mark[:16]
        if spec.out and len(data.sets) > 1:
            folder = folder / str(number)
        meta = embed(model, part, folder, here, batch_size=spec.batch_size, quiet=quiet)
        place = {i: n for n, i in enumerate(part.ids)}
        for m in here:
            start = sum(len(v) for v in vectors[m])
            ids, found = _read_vectors(folder / m, meta.counts[m].parts, mark)
            row[m][data.starts[number] + np.array([place[i] for i in ids], np.int64)] = start + np.arange(len(ids))
            vectors[m].append(found)
    return TeacherVectors(name, {m: np.concatenate(v) for m, v in vectors.items()}, row, mark)


def _read_vectors(folder: Path, parts: int, fingerprint: str) -> tuple[list[str], np.ndarray]:
    import pyarrow.parquet as pq

    ids: list[str] = []
    found: list[np.ndarray] = []
    for number in range(parts):
        path = folder / f"part-{number:05d}.parquet"
        table = pq.read_table(path)
        if (table.schema.metadata or {}).get(b"fingerprint", b"").decode() != fingerprint:
            raise DataError(f"{path}: vectors of another model; delete the folder to compute them again")
        ids += table["id"].to_pylist()
        if len(table):
            flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            found.append(flat.reshape(len(table), -1))
    return ids, np.concatenate(found)


# --- scores ----------------------------------------------------------------------------------------------------------


def _scorer(name: str, spec: ScorerTeacher, data: "WeightedConcat", pairs: Sequence[Pair], quiet: bool) -> TeacherScores:
    scorer, mark = load_scorer(spec.scorer, spec.options, f"teachers.{name}")
    found = {}
    for pair in pairs:
        asked = candidate_rows(spec.candidates, data, pair, f"teachers.{name}.candidates")
        folder = beside(data.sets[0], spec.out, f"teachers.{name}") / f"{name}-{mark[:16]}"
        scores = _score(scorer, mark, data, pair, asked, folder, quiet, f"teachers.{name}")
        found[pair] = data.labels[pair[0]][asked[0]], data.labels[pair[1]][asked[1]], scores
    return TeacherScores(name, found, mark)


def load_scorer(spec: str, options: Mapping[str, Any], key: str) -> tuple[Any, str]:
    """(object with `score(pairs)`, its fingerprint: its own attribute `fingerprint`, else a hash of name and options)."""
    target = SCORERS.get(spec, spec)
    module, colon, attribute = target.partition(":")
    if not colon:
        raise RecipeError(f"{key}.scorer: no scorer {spec!r}{nearest(spec, list(SCORERS))} (or package.module:Class)")
    try:
        scorer = getattr(importlib.import_module(module), attribute)(**options)
    except (ImportError, AttributeError, TypeError) as e:
        raise RecipeError(f"{key}.scorer: cannot make {target}: {e}") from None
    if not callable(getattr(scorer, "score", None)):
        raise RecipeError(f"{key}.scorer: {target} has no method score(pairs)")
    given = json.dumps([target, options], sort_keys=True, default=str)
    return scorer, getattr(scorer, "fingerprint", None) or hashlib.sha256(given.encode()).hexdigest()


def candidate_rows(candidates: str, data: "WeightedConcat", pair: Pair, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of row numbers (of a, of b) to score, each content pair once: `own`, `all`, or own and a negatives table's."""
    a, b = pair
    own = np.flatnonzero(data.present[a] & data.present[b])
    left, right = own, own
    if candidates == "all":
        first_a, first_b = (np.unique(data.labels[m][own], return_index=True)[1] for m in pair)
        if len(first_a) * len(first_b) > MOST:
            raise RecipeError(
                f"{key}: all is {len(first_a)} x {len(first_b)} pairs; name a negatives table (mmtune mine) instead"
            )
        left, right = (x.ravel() for x in np.meshgrid(own[first_a], own[first_b], indexing="ij"))
    elif candidates != "own":
        asked, negative = _table_rows(candidates, data, pair, key)
        left, right = np.concatenate([own, asked]), np.concatenate([own, negative])
    key_NN = np.stack([data.labels[a][left], data.labels[b][right]], 1)
    once = np.sort(np.unique(key_NN, axis=0, return_index=True)[1])
    return left[once], right[once]


def _table_rows(path: str, data: "WeightedConcat", pair: Pair, key: str) -> tuple[np.ndarray, np.ndarray]:
    """The (query, negative) pairs of a mined table, both directions, as rows of (a, b)."""
    if not Path(path).is_file():
        raise RecipeError(f"{key}: {path!r} is neither own, all, nor a file")
    names = {"negative_id": "item_id"}
    frame = {names.get(k, k): v for k, v in _columns(path, ["direction", "query_id", "negative_id"]).items()}
    return _rows_of(frame, data, pair, path)[:2]


def _score(
    scorer: Any,
    mark: str,
    data: "WeightedConcat",
    pair: Pair,
    asked: tuple[np.ndarray, np.ndarray],
    folder: Path,
    quiet: bool,
    key: str,
) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out = np.empty(len(asked[0]), np.float32)
    with Progress(f"teacher {'-'.join(pair)}", len(out), "pairs", quiet) as progress:
        for number, start in enumerate(range(0, len(out), PART)):
            left, right = (x[start : start + PART] for x in asked)
            content = np.ascontiguousarray(np.stack([data.labels[pair[0]][left], data.labels[pair[1]][right]]))
            stamp = {"fingerprint": mark, "pairs": hashlib.sha256(content.tobytes()).hexdigest()[:32]}
            path = folder / "-".join(pair) / f"part-{number:05d}.parquet"
            if not _same_stamp(path, stamp):
                scores = _ask(scorer, list(_signals(data, pair, left, right)), key)
                ids = {n: pa.array([data.ids[i] for i in x], pa.string()) for n, x in (("query_id", left), ("item_id", right))}
                way = pa.array([direction(*pair)] * len(left), pa.string())
                table = pa.table({"direction": way, **ids, "score": pa.array(scores, pa.float32())})
                with atomic_open(path) as f:
                    pq.write_table(table.replace_schema_metadata(stamp), f)
            out[start : start + PART] = pq.read_table(path)["score"].to_numpy()
            progress.advance(len(left))
    return out


def _same_stamp(path: Path, stamp: dict[str, str]) -> bool:
    import pyarrow.parquet as pq

    found = {k.decode(): v.decode() for k, v in (pq.read_schema(path).metadata or {}).items()} if path.exists() else {}
    return {k: found.get(k) for k in stamp} == stamp


def _signals(data: "WeightedConcat", pair: Pair, left: np.ndarray, right: np.ndarray) -> Iterator[tuple[Any, Any]]:
    kept: dict[tuple[str, int], Any] = {}

    def signal(m: str, i: int) -> Any:
        if (key := (m, int(data.labels[m][i]))) not in kept:
            kept[key] = decode_row(data, i, m)
        return kept[key]

    for i, j in zip(left.tolist(), right.tolist(), strict=True):
        yield signal(pair[0], i), signal(pair[1], j)


def _ask(scorer: Any, pairs: list[tuple[Any, Any]], key: str) -> np.ndarray:
    scores = np.asarray(scorer.score(pairs), np.float32).reshape(-1)
    if len(scores) != len(pairs) or not np.isfinite(scores).all():
        raise DataError(f"{key}: gave {len(scores)} scores for {len(pairs)} pairs, or some that are not numbers")
    return scores


# --- a file of scores ------------------------------------------------------------------------------------------------


def _file(name: str, spec: ScoresTeacher, data: "WeightedConcat", pairs: Sequence[Pair]) -> TeacherScores:
    path = spec.scores
    frame = _columns(path, ["query_id", "item_id", "score"])
    if "direction" not in frame and len(pairs) > 1:
        raise DataError(f"teachers.{name}.scores: {path} has no column 'direction', and the recipe trains several pairs")
    found = {}
    for pair in pairs:
        left, right, which = _rows_of(frame, data, pair, path)
        if len(left):
            score = np.array([_number(frame["score"][i]) for i in which], np.float64)
            for line in which[~np.isfinite(score)]:
                raise DataError(
                    f"teachers.{name}.scores: {path}: column 'score' of line {line + 1} is {frame['score'][line]!r}, no number"
                )
            found[pair] = data.labels[pair[0]][left], data.labels[pair[1]][right], score
    if not found:
        raise DataError(f"teachers.{name}.scores: {path} has no score of a pair that is trained here")
    return TeacherScores(name, found, hashlib.sha256(Path(path).read_bytes()).hexdigest())


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _columns(path: str, needed: list[str]) -> dict[str, list[Any]]:
    """A table (Parquet, JSONL, CSV or TSV by its suffix) as lists; DataError naming what is missing."""
    import pyarrow as pa
    from pyarrow import csv
    from pyarrow import json as arrow_json
    from pyarrow import parquet as pq

    suffix = Path(path).suffix
    try:
        if suffix == ".parquet":
            table = pq.read_table(path)
        elif suffix == ".jsonl":
            table = arrow_json.read_json(path)
        elif suffix in (".csv", ".tsv"):
            as_written = csv.ConvertOptions(column_types={n: pa.string() for n in ("query_id", "item_id", "negative_id")})
            table = csv.read_csv(path, None, csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ","), as_written)
        else:
            raise DataError(f"{path}: a table of scores ends in .parquet, .jsonl, .csv or .tsv")
    except (OSError, pa.ArrowInvalid) as e:
        raise DataError(f"{path}: {str(e).splitlines()[0]}") from None
    if missing := [n for n in needed if n not in table.column_names]:
        raise DataError(f"{path}: has no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    return {n: table[n].to_pylist() for n in table.column_names}


def _rows_of(
    frame: dict[str, list[Any]], data: "WeightedConcat", pair: Pair, path: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row of a, row of b, line) of the lines about this pair, turned where a line goes from b to a."""
    row = {i: n for n, i in enumerate(data.ids)}
    ways = frame.get("direction") or [direction(*pair)] * len(frame["query_id"])
    turned = direction(pair[1], pair[0])
    found: list[tuple[int, int, int]] = []
    for line, (way, query, item) in enumerate(zip(ways, frame["query_id"], frame["item_id"], strict=True)):
        if way not in (direction(*pair), turned):
            continue
        for id_, m in ((query, pair[way == turned]), (item, pair[way != turned])):
            if str(id_) not in row or not data.present[m][row[str(id_)]]:
                raise DataError(f"{path}: line {line + 1}: the training data have no row {str(id_)!r} with {m}")
        a, b = row[str(query)], row[str(item)]
        found.append((b, a, line) if way == turned else (a, b, line))
    left, right, which = np.array(found, np.int64).reshape(-1, 3).T
    return left, right, which
