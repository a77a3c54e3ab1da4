"""Miner sources: where candidates come from. A table by name, which a recipe's `mining.sources` lists.

A source of one's own is a class that is called with the `MiningContext` and has `propose`. Its name in a recipe is
`package.module:Class`, or a name after `register_source(name, target)`:

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
    """Candidates with their exact keys, best first, known positives left out: candidates int64 [B, W], -1 where there is none;
    keys int32 [B, W] (see `mmtune.search.exact_scores`)."""

    candidates: np.ndarray
    keys: np.ndarray


class MinerSource(Protocol):
    """Proposes candidates; made once per direction, and called from several threads."""

    def propose(self, queries: np.ndarray) -> np.ndarray | ScoredCandidates:
        """Candidate items int64 [B, W] of query items int64 [B], best first, -1 where there are none.

        Known positives among them are left out by the caller, which also computes the scores; a source that has done both
        returns `ScoredCandidates`.
        """
        ...


TABLE: dict[str, str | Callable[[MiningContext], MinerSource]] = {
    "nearest": "mmtune.mining.nearest_candidates:NearestCandidates",
    "lexical": "mmtune.mining.bm25_candidates:BM25Candidates",
    "siblings": "mmtune.mining.metadata_candidates:SiblingCandidates",
}
"""Name of a source -> the class, or where it is defined. A candidate that several sources propose counts for the first of them in
this order; sources that are not in the table follow."""


def register_source(name: str, target: str | Callable[[MiningContext], MinerSource]) -> None:
    """Make a source known by `name` in recipes of this process. target: the class, or "package.module:Class"."""
    plugins.register(TABLE, name, target, "miner source")


def source_names(names: Sequence[str]) -> list[str]:
    """The sources of the table, then those of `names` that are not in it; a source's position is its number."""
    return list(dict.fromkeys([*TABLE, *names]))


def make_source(name: str, context: MiningContext) -> MinerSource:
    """The source `name` of one direction. RecipeError for an unknown name."""
    return plugins.resolve(TABLE, name, "miner source", key="mining.sources")(context)
