"""Pictures for trackers: some queries of the validation data with their best results, and some queries with mined negatives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Pair, direction
from mmtune.mining.negatives_table import read_metadata, read_table
from mmtune.modalities.picture_strip import Picture, picture_strip
from mmtune.relevance.items import Items
from mmtune.relevance.positives import Positives

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

TOP = 5
"""Number of results or negatives beside each query."""
QUERY, RIGHT, WRONG = (40, 40, 40), (20, 150, 60), (200, 40, 40)
"""Colours of the frames: the query, a relevant result, a result that is not relevant (and a mined negative)."""


def retrieval_pictures(items: Mapping[str, Items], data: "Data", pairs: Sequence[Pair], count: int) -> dict[str, list[Picture]]:
    """Draw up to `count` queries of each trained direction, spread evenly over the data, with their best results.

    The frame of a relevant result is green, that of another one red. Returns {"retrieval a->b": pictures}.

    items: the items of all rows of `data`, because each of them is a candidate
    """
    directions = [d for a, b in pairs for d in dict.fromkeys([(a, b), (b, a)])]
    drawn = {}
    for a, b in directions:
        if a not in items or b not in items:
            continue
        queries, candidates = items[a], items[b]
        chosen = np.unique(np.linspace(0, len(queries) - 1, min(count, len(queries))).round().astype(np.int64))
        scores = np.asarray(queries.query_vectors[chosen]) @ np.asarray(candidates.vectors).T
        if a == b:
            scores[np.arange(len(chosen)), chosen] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(TOP, len(candidates) - (a == b))]
        relevant = Positives(queries, candidates).contains(chosen, best)
        drawn[f"retrieval {direction(a, b)}"] = [
            _strip(data, (a, int(queries.head[q])), [(b, int(candidates.head[c])) for c in row], marks)
            for q, row, marks in zip(chosen, best, relevant.tolist(), strict=True)
        ]
    return drawn


def mined_pictures(table: Path, data: "Data | WeightedConcat", count: int) -> dict[str, list[Picture]]:
    """Draw the first `count` queries of each direction of a negatives table, with their mined negatives.

    Returns {"mined a->b": pictures}.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for part in read_table(table, read_metadata(table).fingerprint):
        for row in part.select(["direction", "query_id", "negative_id"]).to_pylist():
            queries = found.setdefault(row["direction"], {})
            if row["query_id"] in queries or len(queries) < count:
                queries.setdefault(row["query_id"], []).append(row["negative_id"])
    row_of = {row_id: i for i, row_id in enumerate(data.ids)}
    drawn = {}
    for name, queries in found.items():
        a, _, b = name.partition("->")
        drawn[f"mined {name}"] = [
            _strip(data, (a, row_of[q]), [(b, row_of[n]) for n in negatives[:TOP]], [False] * len(negatives[:TOP]))
            for q, negatives in queries.items()
        ]
    return drawn


def _strip(
    data: "Data | WeightedConcat", query: tuple[str, int], others: Sequence[tuple[str, int]], relevant: Sequence[bool]
) -> Picture:
    """Draw a query and other values in one line, each given as (modality, row), with frames that tell what is relevant."""
    values = [(m, data.read(row, m)) for m, row in (query, *others)]
    return picture_strip(values, [QUERY, *(RIGHT if r else WRONG for r in relevant)], 1 + TOP)
