"""A few searches by two models on the same validation rows, for people to look at."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.data.shards.dataset import Data, open_data
from mmtune.demo.pages import Search, Shown
from mmtune.embedding.embed_rows import embed_data
from mmtune.model.artifact import load
from mmtune.search.exact import topk
from mmtune.search.tie_order import tie_order

# heading, corpus, what asks, what is found
KINDS = (
    ("Photos for a description", "catalog", "text", "image"),
    ("Descriptions for a photo", "catalog", "image", "text"),
    ("Sounds for a description", "machines", "text", "audio"),
    ("Sounds like this one", "machines", "audio", "audio"),
)


def searches(data: Mapping[str, str], before: str, after: str, count: int, top: int = 5) -> dict[str, list[Search]]:
    """Heading -> `count` searches. A fixed rule spreads the queries over the rows, so nobody has picked the
    nice ones.

    data: corpus -> DATA; before, after: MODELs. An answer is right when it has the query's group; a query never finds itself.
    """
    models = [load(m) for m in (before, after)]
    opened = {c: open_data(place) for c, place in data.items()}
    vectors = {c: [embed_data(model, rows) for model in models] for c, rows in opened.items()}
    found: dict[str, list[Search]] = {}
    for heading, corpus, asks, answers in KINDS:
        rows, sides = opened[corpus], vectors[corpus]
        pool = _distinct(sides[0][answers], answers)
        queries = _distinct(sides[0][asks], asks)
        # golden-ratio steps: spread out, and out of step with the rows' own order (kind by kind, fault by fault)
        chosen = [queries[int((i + 0.5) * 0.6180339887498949 % 1 * len(queries))] for i in range(count)]
        found[heading] = [
            Search(_shown(rows, q, asks, None), *(_answers(rows, side, q, asks, answers, pool, top) for side in sides))
            for q in dict.fromkeys(chosen)
        ]
    return found


def looked_up(data: str, answers: Sequence[Mapping[str, Any]]) -> list[Search]:
    """Answers of a collection's two versions, {"query": row, "v1": [ids], "v2": [ids]}, with what their ids stand for."""
    rows, found = open_data(data), []
    at = {name: i for i, name in enumerate(rows.ids)}
    for a in answers:
        group = rows.groups[a["query"]]
        sides = ([_shown(rows, at[i], "image", rows.groups[at[i]] == group) for i in a[v]] for v in ("v1", "v2"))
        found.append(Search(_shown(rows, a["query"], "text", None), *sides))
    return found


def _distinct(e: Embeddings, modality: str) -> list[int]:
    """The first row of every distinct content."""
    _, first = np.unique(e.labels[modality], return_index=True)
    return sorted(first.tolist())


def _answers(
    rows: Data, side: Mapping[str, Embeddings], query: int, asks: str, answers: str, pool: list[int], top: int
) -> list[Shown]:
    here = [p for p in pool if asks != answers or p != query]
    ids = [side[answers].ids[p] for p in here]
    _, best = topk(side[asks].vectors[[query]], side[answers].vectors[here], top, order=tie_order(ids))
    group = side[asks].groups[query]
    return [_shown(rows, here[i], answers, rows.groups[here[i]] == group) for i in best[0]]


def _shown(rows: Data, row: int, modality: str, right: bool | None) -> Shown:
    label = (rows.groups[row] or "") if modality == "text" else rows.read(row, "text").decode()
    return Shown(modality, rows.read(row, modality), label, right)
