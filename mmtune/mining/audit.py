"""The audit of one mined direction: counts and histograms, whose size does not depend on the number of rows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.mining.candidate_block import CandidateBlock
from mmtune.mining.guards import NO_SUSPICION
from mmtune.relevance.items import Items

BINS = 2000
"""Bins of the score histograms over -1..1; one bin is 0.001 wide."""
MAX_EXAMPLES = 8
"""Maximum number of example pairs per kind."""
MAX_HUBS = 10
"""Number of hubs listed: the candidates that are mined most often."""


@dataclass
class ScoreHistogram:
    """A histogram of scores in -1..1. Its quantiles are accurate to 0.001."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 1, np.int64))

    def add(self, scores: np.ndarray) -> None:
        """Add scores to the histogram."""
        at = np.clip(np.floor((scores.astype(np.float64) + 1) * (BINS / 2)), 0, BINS).astype(np.int64)
        self.counts += np.bincount(at, minlength=BINS + 1)

    def summary(self) -> dict[str, float] | None:
        """Return the 5, 25, 50, 75 and 95 % quantiles, or None if the histogram is empty."""
        total = self.counts.sum()
        if not total:
            return None
        up = np.cumsum(self.counts)
        return {f"p{p:02d}": round(float(np.searchsorted(up, p / 100 * total)) * 2 / BINS - 1, 3) for p in (5, 25, 50, 75, 95)}


@dataclass
class Examples:
    """Collects the pairs of one kind whose score is closest to (or furthest above) the score of the query's positive.

    rows: float64 [E, 5], columns: gap (positive score - score), query, candidate, score, positive score
    """

    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))

    def add(self, block: CandidateBlock, mask: np.ndarray) -> None:
        """Consider the candidates marked in mask [B, W], at most one per query for variety."""
        i = np.flatnonzero(mask.any(1))
        positive = block.positive_score[i]
        # an unknown positive score counts as 2, more than any cosine, so that these pairs come after most others
        gap = np.where(np.isnan(positive), 2.0, positive)[:, None] - block.scores[i].astype(np.float64)
        w = np.where(mask[i], gap, np.inf).argmin(1)
        new = [gap[np.arange(len(i)), w], block.queries[i], block.candidates[i, w], block.scores[i, w], positive]
        rows = np.concatenate([self.rows, np.stack(new, 1)])
        self.rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))][:MAX_EXAMPLES]


class Audit:
    """Counts for one direction, added up block by block.

    sources: source names in the order of their numbers (see `CandidateSearch.names`)
    reasons: names of the reasons to drop a candidate (see `GuardChain.reasons`)
    """

    def __init__(self, queries: Items, candidates: Items, sources: Sequence[str], reasons: Sequence[str]):
        self.queries, self.candidates, self.reasons = queries, candidates, tuple(reasons)
        self.dropped_first = dict.fromkeys(reasons, 0)
        self.dropped_alone: dict[str, int] = {}
        self.spared: dict[str, int] = {}
        self.filled = self.mined = self.mined_unlabelled = self.known_negative = self.above = 0  # numbers of candidates
        self.without_any = self.with_fewer = self.without_candidates = 0  # numbers of queries
        self.by_source = dict.fromkeys(sources, 0)
        self.scores = {"mined": ScoreHistogram(), "dropped": ScoreHistogram(), "positive": ScoreHistogram()}
        self.examples: dict[str, Examples] = {}

    def add(
        self,
        block: CandidateBlock,
        masks: dict[str, np.ndarray],
        known_negative: np.ndarray,
        reason: np.ndarray,
        is_mined: np.ndarray,
        quota: np.ndarray,
    ) -> None:
        """Add one block.

        masks: {guard name: bool [B, W]}, what each guard by itself would drop
        known_negative: bool [B, W], pairs that labels or people say are negative
        reason: int8 [B, W], the reason that dropped the candidate; 0: kept
        is_mined: bool [B, W]
        quota: int64 [B], the number of negatives wanted per query
        """
        filled = block.filled
        self.filled += int(filled.sum())
        self.mined += int(is_mined.sum())
        self.known_negative += int((known_negative & filled).sum())
        count = is_mined.sum(1)
        self.without_any += int((count == 0).sum())
        self.without_candidates += int((~filled.any(1)).sum())
        self.with_fewer += int(((count > 0) & (count < quota)).sum())
        for name, mask in masks.items():
            self.dropped_alone[name] = self.dropped_alone.get(name, 0) + int(mask.sum())
            self.spared[name] = self.spared.get(name, 0) + int((mask & known_negative).sum())
        for number, name in enumerate(self.reasons, 1):
            dropped = reason == number
            self.dropped_first[name] += int(dropped.sum())
            if name not in NO_SUSPICION and dropped.any():
                self.examples.setdefault(name, Examples()).add(block, dropped)
        self.examples.setdefault("mined", Examples()).add(block, is_mined)
        self.mined_unlabelled += int((is_mined & ~known_negative).sum())
        with np.errstate(invalid="ignore"):
            self.above += int((is_mined & (block.scores >= block.positive_score[:, None])).sum())
        for number, name in enumerate(self.by_source):
            self.by_source[name] += int((is_mined & (block.source == number)).sum())
        self.scores["mined"].add(block.scores[is_mined])
        self.scores["dropped"].add(block.scores[(reason > 0) & filled])
        self.scores["positive"].add(block.positive_score[~np.isnan(block.positive_score)])

    def document(self, times_mined: np.ndarray, cap: int | None) -> JsonObject:
        """Return the counts as a JSON document.

        times_mined: int64 [C], how often each candidate is mined
        cap: how often a candidate may be mined; None: no limit
        """
        top = np.argsort(-times_mined, kind="stable")[:MAX_HUBS]
        ids = self.candidates.ids
        return {
            "queries": len(self.queries),
            "candidates": len(self.candidates),
            "looked_at": self.filled,
            "mined": self.mined,
            "mined_by_source": {k: v for k, v in self.by_source.items() if v},
            "mined_at_or_above_positive": self.above,
            "mined_unlabelled": self.mined_unlabelled,
            "queries_with_none": self.without_any,
            "queries_with_fewer": self.with_fewer,
            "queries_without_candidates": self.without_candidates,
            "dropped": {n: c for n, c in self.dropped_first.items() if c or n in self.dropped_alone},
            "dropped_alone": self.dropped_alone,
            "spared_by_labels": self.spared,
            "trusted_pairs": self.known_negative,
            "suspected_false_negatives": sum(c for n, c in self.dropped_first.items() if n not in NO_SUSPICION),
            "scores": {k: h.summary() for k, h in self.scores.items()},
            "hubs": {
                "cap": cap,
                "top": [{"id": ids[i], "serves": int(times_mined[i])} for i in top if times_mined[i]],
                "never_served": int((times_mined == 0).sum()),
            },
        }

    def example_pairs(self) -> dict[str, list[JsonObject]]:
        """Return {kind: example pairs}, as row ids and scores."""
        return {
            kind: [
                {
                    "query_id": self.queries.ids[int(q)],
                    "negative_id": self.candidates.ids[int(c)],
                    "score": round(s, 4),
                    "positive_score": None if np.isnan(p) else round(p, 4),
                }
                for _, q, c, s, p in e.rows.tolist()
            ]
            for kind, e in self.examples.items()
            if len(e.rows)
        }
