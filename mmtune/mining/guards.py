"""False-negative guards: why a candidate might be a positive that nobody labelled. Each marks candidates of a block.

Margins keep a candidate only if score <= positive - margin, where the relative margin is a share of |positive|: so a larger
margin is stricter for negative scores too (NV-Retriever's `score < 0.95 positive`, arXiv 2407.15831, reverses below zero).

A guard of one's own is a class that is called with the `MiningContext` and has `name` and `drops`. A recipe lists it in
`mining.guards.extra`, as `package.module:Class` or by a name after `register_guard(name, target)`:

    class SameShop:
        name = "same_shop"

        def __init__(self, context: MiningContext) -> None:
            self.shop = np.array([i.split("/")[0] for i in context.candidates.ids])

        def drops(self, block: CandidateBlock) -> np.ndarray:
            return self.shop[block.candidates] == self.shop[block.queries][:, None]
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from mmtune.errors import RecipeError
from mmtune.mining.candidate_block import CandidateBlock
from mmtune.mining.context import MiningContext, row_finder
from mmtune.mining.near_duplicates import NearDuplicates
from mmtune.relevance.ragged import Ragged
from mmtune.runtime import plugins

BUILT_IN = ("skip_top", "max_score", "absolute_margin", "relative_margin", "near_duplicate")
"""Guards that options of `mining.guards` switch on, in the order in which a drop is attributed. Extra guards follow."""
LAST = ("verifier", "unverified", "hub")
"""Reasons that come after all guards: the verifier's, and the cap on candidates that are mined too often."""
NO_SUSPICION = ("skip_top", "unverified", "hub")
"""Reasons that do not say that a candidate is a false negative."""


class Guard(Protocol):
    """Marks candidates that may be unlabelled positives; made once per direction, and called from several threads."""

    name: str

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """bool [B, W]: candidates that this guard alone would drop. The value at empty places does not matter."""
        ...


TABLE: dict[str, str | Callable[[MiningContext], Guard]] = {}
"""Names of registered extra guards -> the class, or where it is defined."""


def register_guard(name: str, target: str | Callable[[MiningContext], Guard]) -> None:
    """Make a guard known by `name` in `mining.guards.extra`. target: the class, or "package.module:Class"."""
    plugins.register(TABLE, name, target, "guard")


@dataclass
class SkipTopGuard:
    """Drops the first ranks of the nearest candidates."""

    ranks: int
    name: str = "skip_top"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """Candidates of source number 0, `nearest` where it is used, up to the rank."""
        return (block.rank <= self.ranks) & (block.source == 0)


@dataclass
class MaxScoreGuard:
    """Drops candidates with a score above a fixed limit."""

    limit: float
    name: str = "max_score"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """score > limit."""
        return block.scores.astype(np.float64) > self.limit


@dataclass
class AbsoluteMarginGuard:
    """Drops candidates with a score above positive - margin."""

    margin: float
    name: str = "absolute_margin"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """score > positive - margin; nothing where no positive is known."""
        with np.errstate(invalid="ignore"):
            return block.scores.astype(np.float64) > block.positive_score[:, None] - self.margin


@dataclass
class RelativeMarginGuard:
    """Drops candidates with a score above positive - share x |positive|."""

    share: float
    name: str = "relative_margin"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """score > positive - share |positive|; nothing where no positive is known."""
        positive = block.positive_score[:, None]
        with np.errstate(invalid="ignore"):
            return block.scores.astype(np.float64) > positive - self.share * np.abs(positive)


@dataclass
class NearDuplicateGuard:
    """Drops candidates whose content is nearly the query's, or nearly its positive's."""

    near: NearDuplicates
    name: str = "near_duplicate"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """Near-duplicates of the query in either modality of the direction."""
        return self.near.contains(block.queries, block.candidates)


@dataclass(frozen=True)
class GuardChain:
    """The guards of one direction.

    labelled_queries bool [Q], labelled_candidates bool [C]: every row of the item has a group; trust_groups: two items with
    different groups are known negatives; judged_negative: query -> candidates that people called negative.
    """

    guards: tuple[Guard, ...]
    labelled_queries: np.ndarray
    labelled_candidates: np.ndarray
    trust_groups: bool
    judged_negative: Ragged | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """Names in the order in which a drop is attributed; the number of a reason is its position + 1, and 0 is "kept"."""
        extra = [g.name for g in self.guards if g.name not in BUILT_IN]
        return (*BUILT_IN, *extra, *LAST)

    def number(self, reason: str) -> int:
        """The number of a reason."""
        return self.reasons.index(reason) + 1

    def with_relative_margin(self, share: float | None) -> "GuardChain":
        """The same guards with this relative margin, or without one."""
        others = [g for g in self.guards if g.name != "relative_margin"]
        if share is not None:
            others.append(RelativeMarginGuard(share))
        return replace(self, guards=tuple(sorted(others, key=lambda g: self.reasons.index(g.name))))

    def masks(self, block: CandidateBlock) -> dict[str, np.ndarray]:
        """What each guard would drop by itself: name -> bool [B, W]."""
        return {g.name: g.drops(block) & block.filled for g in self.guards}

    def known_negatives(self, block: CandidateBlock) -> np.ndarray:
        """bool [B, W]: pairs known to be negative, which no guard may drop: two different groups, or a human verdict."""
        out = np.zeros(block.candidates.shape, bool)
        if self.trust_groups:
            out |= self.labelled_queries[block.queries][:, None] & self.labelled_candidates[block.candidates]
        if self.judged_negative is not None:
            out |= self.judged_negative.contains(block.queries, block.candidates)
        return out & block.filled

    def first_reason(self, masks: dict[str, np.ndarray], known_negative: np.ndarray) -> np.ndarray:
        """int8 [B, W]: the number of the first guard that drops a candidate, 0 where none does."""
        out = np.zeros(known_negative.shape, np.int8)
        for number, name in enumerate(self.reasons, 1):
            if name in masks:
                out[masks[name] & ~known_negative & (out == 0)] = number
        return out


def make_guards(context: MiningContext, judged_negative: Ragged | None = None) -> GuardChain:
    """The guards that the options of a direction switch on, without the relative margin, which may need calibration first.

    RecipeError for an unknown extra guard, or one whose name is taken.
    """
    options = context.options.guards
    guards: list[Guard] = []
    if options.skip_top:
        guards.append(SkipTopGuard(options.skip_top))
    if options.max_score is not None:
        guards.append(MaxScoreGuard(options.max_score))
    if options.absolute_margin is not None:
        guards.append(AbsoluteMarginGuard(options.absolute_margin))
    if options.near_duplicates and context.content_hashes and context.data is not None:
        rows_of = row_finder(context.data)
        near = NearDuplicates(context.queries, context.candidates, context.content_hashes, rows_of)
        guards.append(NearDuplicateGuard(near))
    guards += _extra_guards(context, options.extra)
    trust = options.groups and options.trust_groups
    return GuardChain(tuple(guards), context.queries.labelled, context.candidates.labelled, trust, judged_negative)


def _extra_guards(context: MiningContext, names: Sequence[str]) -> list[Guard]:
    guards: list[Guard] = []
    for name in names:
        guard = plugins.resolve(TABLE, name, "guard", key="mining.guards.extra")(context)
        if guard.name in (*BUILT_IN, *LAST, *(g.name for g in guards)):
            raise RecipeError(f"mining.guards.extra: {name}: there is a guard named {guard.name!r} already")
        guards.append(guard)
    return guards
