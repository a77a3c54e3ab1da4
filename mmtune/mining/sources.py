"""Miner sources propose candidates. A recipe lists the names of the sources to use in `mining.sources`.

To write a source, define a class that is constructed with the `MiningContext` and has `propose`. A recipe names it as
`package.module:Class`, or by a name registered with `register_source(name, target)`:
    class Previous:
        def __init__(self, context: MiningContext) -> None:
            self.context = context

        def propose(self, queries: np.ndarray) -> np.ndarray:
            return (queries[:, None] - np.arange(1, 5)).clip(-1)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mmtune.mining.context import MiningContext
from mmtune.runtime import plugins


@dataclass
class ScoredCandidates:
    """Candidates with their exact keys, best first, without known positives.

    candidates: int64 [B, W], -1 where there is none
    keys: int32 [B, W] (see `mmtune.search.exact_scores`)
    """

    candidates: np.ndarray
    keys: np.ndarray


class MinerSource(Protocol):
    """Proposes candidates. One instance per direction, called from several threads."""

    def propose(self, queries: np.ndarray) -> np.ndarray | ScoredCandidates:
        """Return candidate items int64 [B, W] of query items int64 [B], best first, -1 where there are none.

        The caller removes known positives and computes the scores. A source that has already done both returns
        `ScoredCandidates` instead.
        """
        ...


TABLE: dict[str, str | Callable[[MiningContext], MinerSource]] = {
    "nearest": "mmtune.mining.nearest_candidates:NearestCandidates",
    "lexical": "mmtune.mining.bm25_candidates:BM25Candidates",
    "siblings": "mmtune.mining.metadata_candidates:SiblingCandidates",
}
"""Registered sources: {name: class, or "package.module:Class"}. If several sources propose a candidate, it is attributed to the
first of them in this order; sources not in this table come last."""


def register_source(name: str, target: str | Callable[[MiningContext], MinerSource]) -> None:
    """Register a source under `name`, for recipes run by this process. target: the class, or "package.module:Class"."""
    plugins.register(TABLE, name, target, "miner source")


def source_names(names: Sequence[str]) -> list[str]:
    """Return the sources of the table, then those of `names` that are not in it; the position of a source is its number."""
    return list(dict.fromkeys([*TABLE, *names]))


def make_source(name: str, context: MiningContext) -> MinerSource:
    """Create the source `name` for one direction. Raises RecipeError for an unknown name."""
    return plugins.resolve(TABLE, name, "miner source", key="mining.sources")(context)
