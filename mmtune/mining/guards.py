"""False-negative guards: each guard marks the candidates of a block that may be unlabelled positives, by one criterion.

A margin guard keeps a candidate only if score <= positive score - margin. The relative margin is a share of |positive score|,
so a larger margin is stricter for negative scores too. NV-Retriever (arXiv 2407.15831) uses `score < 0.95 * positive score`,
which becomes more lenient instead for negative scores.

To write a guard, define a class that is constructed with the `MiningContext` and has `name` and `drops`. List it in the
recipe's `mining.guards.extra`, as `package.module:Class`, or by name after `register_guard(name, target)`:

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
"""Guards switched on by options of `mining.guards`, in the order in which they are checked; extra guards come after them.

If several guards would drop a candidate, the audit counts it for the first one.
"""
LAST = ("verifier", "unverified", "hub")
"""Reasons after all guards: dropped by the verifier, not checked by the verifier, mined too often (`hub_cap`)."""
NO_SUSPICION = ("skip_top", "unverified", "hub")
"""Reasons that do not suggest that the candidate is a false negative."""


class Guard(Protocol):
    """Marks candidates that may be unlabelled positives. One instance per direction, called from several threads."""

    name: str

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """bool [B, W]: candidates that this guard by itself would drop. Values at columns without a candidate are ignored."""
        ...


TABLE: dict[str, str | Callable[[MiningContext], Guard]] = {}
"""Registered extra guards: {name: class, or "package.module:Class"}."""


def register_guard(name: str, target: str | Callable[[MiningContext], Guard]) -> None:
    """Register a guard under `name`, for use in `mining.guards.extra`. target: the class, or "package.module:Class"."""
    plugins.register(TABLE, name, target, "guard")


@dataclass
class SkipTopGuard:
    """Drops the nearest candidates up to a rank."""

    ranks: int
    name: str = "skip_top"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """True for candidates of source 0, which is `nearest`, with a rank of at most `ranks`."""
        return (block.rank <= self.ranks) & (block.source == 0)


@dataclass
class MaxScoreGuard:
    """Drops candidates with a score above a fixed limit."""

    limit: float
    name: str = "max_score"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """True if score > limit."""
        return block.scores.astype(np.float64) > self.limit


@dataclass
class AbsoluteMarginGuard:
    """Drops candidates with a score above positive score - margin."""

    margin: float
    name: str = "absolute_margin"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """True if score > positive score - margin; False if no positive is known."""
        with np.errstate(invalid="ignore"):
            return block.scores.astype(np.float64) > block.positive_score[:, None] - self.margin


@dataclass
class RelativeMarginGuard:
    """Drops candidates with a score above positive score - share * |positive score|."""

    share: float
    name: str = "relative_margin"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """True if score > positive score - share * |positive score|; False if no positive is known."""
        positive = block.positive_score[:, None]
        with np.errstate(invalid="ignore"):
            return block.scores.astype(np.float64) > positive - self.share * np.abs(positive)


@dataclass
class NearDuplicateGuard:
    """Drops candidates whose content is nearly identical to the content of the query or of its positive."""

    near: NearDuplicates
    name: str = "near_duplicate"

    def drops(self, block: CandidateBlock) -> np.ndarray:
        """True where a row of the candidate has nearly the same content as a row of the query, in either modality of the direction
        (a row holds the query and its positive)."""
        return self.near.contains(block.queries, block.candidates)


@dataclass(frozen=True)
class GuardChain:
    """The guards of one direction.

    labelled_queries: bool [Q], True if every data row that holds this query has a group label (rows of identical content are
        one query)
    labelled_candidates: bool [C], the same for candidates
    trust_groups: two items with different groups are known negatives
    judged_negative: the candidates of each query that people judged negative
    """

    guards: tuple[Guard, ...]
    labelled_queries: np.ndarray
    labelled_candidates: np.ndarray
    trust_groups: bool
    judged_negative: Ragged | None = None

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons to drop a candidate, in the order in which they are checked.

        A reason's number is its position + 1; number 0 means "kept".
        """
        extra = [g.name for g in self.guards if g.name not in BUILT_IN]
        return (*BUILT_IN, *extra, *LAST)

    def number(self, reason: str) -> int:
        """Return the number of a reason."""
        return self.reasons.index(reason) + 1

    def with_relative_margin(self, share: float | None) -> "GuardChain":
        """Return the same guards with this relative margin; None removes the relative margin."""
        others = [g for g in self.guards if g.name != "relative_margin"]
        if share is not None:
            others.append(RelativeMarginGuard(share))
        return replace(self, guards=tuple(sorted(others, key=lambda g: self.reasons.index(g.name))))

    def masks(self, block: CandidateBlock) -> dict[str, np.ndarray]:
        """Return what each guard by itself would drop: {name: bool [B, W]}."""
        return {g.name: g.drops(block) & block.filled for g in self.guards}

    def known_negatives(self, block: CandidateBlock) -> np.ndarray:
        """bool [B, W]: known negatives, which no guard may drop: pairs with different groups or a negative human verdict.

        That both sides are labelled is enough: candidates of the query's own group are positives and not in the block.
        """
        out = np.zeros(block.candidates.shape, bool)
        if self.trust_groups:
            out |= self.labelled_queries[block.queries][:, None] & self.labelled_candidates[block.candidates]
        return (out | self.judged_negatives(block)) & block.filled

    def judged_negatives(self, block: CandidateBlock) -> np.ndarray:
        """bool [B, W]: pairs with a negative human verdict, and negatives that the user gave. No verifier may drop them either."""
        if self.judged_negative is None:
            return np.zeros(block.candidates.shape, bool)
        return self.judged_negative.contains(block.queries, block.candidates) & block.filled

    def first_reason(self, masks: dict[str, np.ndarray], known_negative: np.ndarray) -> np.ndarray:
        """int8 [B, W]: the number of the first guard that drops the candidate; 0 if none does."""
        out = np.zeros(known_negative.shape, np.int8)
        for number, name in enumerate(self.reasons, 1):
            if name in masks:
                out[masks[name] & ~known_negative & (out == 0)] = number
        return out


def make_guards(context: MiningContext, judged_negative: Ragged | None = None) -> GuardChain:
    """Create the guards that the options switch on, except the relative margin, which may have to be calibrated first.

    Raises RecipeError for an unknown extra guard, or if two guards have the same name.
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
            raise RecipeError(f"mining.guards.extra: {name}: another guard is already named {guard.name!r}")
        guards.append(guard)
    return guards
