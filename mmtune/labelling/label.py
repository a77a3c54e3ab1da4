"""Ask people about pairs: `mmtune label`, `mmtune.label_session` and `mmtune.label_budget`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings, JsonObject
from mmtune.data.cached_packing import pack_once
from mmtune.data.in_memory import as_opened
from mmtune.data.shards.dataset import Data
from mmtune.data.sources.tables import ARROW_SUFFIXES, TEXT_SUFFIXES
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError
from mmtune.labelling.answer_log import AnswerLog
from mmtune.labelling.budget import BudgetCurve, simulate_budget
from mmtune.labelling.choose_questions import DENSE, DISAGREEMENT, STRATEGIES, UNSURE, strategies_of
from mmtune.labelling.label_session import LabelSession
from mmtune.labelling.question_pool import make_pool
from mmtune.relevance.items import names_to_labels
from mmtune.runtime.files import read_json, sha256_file, write_json

MAX_REJECTED = 0.05
ANSWERS = (50, 100, 200)


def open_label_session(
    data: object,
    out: str | Path,
    *,
    model: object = None,
    tuned: object = None,
    direction: str | None = None,
    choose: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    quiet: bool = True,
) -> LabelSession:
    """Open or continue labelling; see `mmtune.label` for the parameters."""
    opened, model = _open(data, model)
    log = AnswerLog(out)
    vectors = _embed(model, opened, batch_size, quiet)
    pair = _pair(direction, list(vectors))
    _check_direction(log, pair)
    other = _embed(tuned, opened, batch_size, quiet) if tuned is not None else None
    pool = make_pool(vectors, pair, other)
    strategies = strategies_of(choose, pool)
    log.publish()
    return LabelSession(opened, pool, log, strategies, seed)


def label_budget(
    data: object,
    answers: int,
    *,
    model: object = None,
    direction: str | None = None,
    choose: str | None = None,
    truth: str = "group",
    seeds: int = 3,
    batch_size: int = 64,
    quiet: bool = True,
) -> BudgetCurve:
    """Simulate what a number of answers would buy; see `mmtune.label_budget` for the parameters."""
    if answers < 1:
        raise DataError(f"--budget {answers}: must be at least 1")
    opened, model = _open(data, model)
    vectors = _embed(model, opened, batch_size, quiet)
    pair = _pair(direction, list(vectors))
    names = [n.strip() for n in choose.split(",")] if choose else [UNSURE]
    if any(n not in STRATEGIES or n == DISAGREEMENT for n in names):
        raise DataError(f"--choose {choose}: a budget is simulated with {UNSURE} or {DENSE}")
    column = opened.groups if truth == "group" else opened.column(truth)
    labels = names_to_labels([None if value is None else str(value) for value in column])
    rows = np.flatnonzero(np.logical_and.reduce([opened.present[m] for m in set(pair)]))
    vectors = {m: _rows_of(vectors[m], opened, rows) for m in set(pair)}
    points = [n for n in ANSWERS if n < answers] + [answers]
    return simulate_budget(vectors, pair, points, truth=labels[rows], strategies=names, seeds=seeds, quiet=quiet)


def _rows_of(e: Embeddings, data: Data, rows: np.ndarray) -> Embeddings:
    """The embeddings of these rows of the data."""
    at = {id: i for i, id in enumerate(e.ids)}
    index = np.array([at[id] for id in data.ids.take(rows)], np.int64)
    labels = {k: v[index] for k, v in e.labels.items()}
    return Embeddings(
        [e.ids[i] for i in index], [e.groups[i] for i in index], labels, np.asarray(e.vectors)[index], e.fingerprint
    )


def _open(data: object, model: object) -> tuple[Data, object]:
    """Open a table, packed data or a collection. A collection brings the model of its live version."""
    if isinstance(data, str | Path) and (Path(data) / "collection.json").is_file():
        opened, live = _collection(Path(data))
        return opened, model if model is not None else live
    if model is None:
        raise DataError("--model MODEL is needed; only a collection brings its own")
    if isinstance(data, str | Path) and Path(data).suffix.lower() in (*ARROW_SUFFIXES, *TEXT_SUFFIXES):
        return as_opened(str(_packed_table(Path(data)))), model
    return as_opened(data), model


def _packed_table(table: Path) -> Path:
    from mmtune.data.pack.pack import pack

    if not table.is_file():
        raise DataError(f"{table}: no such file")
    identity = [str(table.absolute().parent), sha256_file(table)]
    return pack_once(str(table), "tables", identity, lambda out: pack(table, out, max_rejected=1.0), MAX_REJECTED)


def _collection(path: Path) -> tuple[Data, str]:
    """The items of a collection, packed into the cache, and the artifact of its live version."""
    from mmtune.index.collection import Collection

    with Collection(path) as collection:
        live = collection.live
        if live is None:
            raise DataError(f"{path}: no version is live; promote one first, or give --model and --data")
        rows = []
        for items in collection.catalog.changed(0):
            for item in items:
                values = {m: collection.catalog.read(item, m) for m in item.contents}
                texts = {m: v.decode("utf-8", "replace") if modalities.get(m).language else v for m, v in values.items()}
                rows.append({"id": item.id, "group": item.group, **texts})
        fingerprint = collection.open(live).model.fingerprint
    if not rows:
        raise DataError(f"{path}: the collection is empty")
    return as_opened(rows), str(path / "models" / fingerprint)


def _embed(model: object, data: Data, batch_size: int, quiet: bool) -> dict[str, Embeddings]:
    from mmtune.model.artifact import load

    loaded = load(model) if isinstance(model, str | Path) else model
    return embed_data(loaded, data, batch_size=batch_size, quiet=quiet)  # type: ignore[arg-type]


def _pair(direction: str | None, have: Sequence[str]) -> tuple[str, str]:
    """The direction to ask in. Default: from language to the first other modality; with one modality, within it."""
    if direction is None:
        language = [m for m in have if modalities.get(m).language]
        others = [m for m in have if m not in language]
        query = (language or others)[0]
        return query, (others or language)[0]
    a, arrow, b = direction.partition("->")
    if not arrow or a not in have or b not in have:
        known = ", ".join(f"{x}->{y}" for x in have for y in have)
        raise DataError(f"--direction {direction}: use one of {known}")
    return a, b


def _check_direction(log: AnswerLog, pair: tuple[str, str]) -> None:
    """Refuse to mix two directions in one directory, where a half-finished job would be taken for the other."""
    stamp: JsonObject = {"direction": f"{pair[0]}->{pair[1]}"}
    path = log.out / "label.json"
    if not path.exists():
        write_json(path, stamp)
    elif read_json(path) != stamp:
        raise DataError(f"{log.out}: has answers in direction {read_json(path)['direction']}; use that, or another --out")
