"""What mining did in one direction, in numbers that fit in memory whatever the number of rows."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmtune.mining.candidates import SOURCES, Block
from mmtune.mining.guards import ORDER
from mmtune.relevance.items import Items

BINS = 2000
EXAMPLES = 8
GUESSES = ("max_score", "absolute_margin", "relative_margin", "near_duplicate", "verifier")
"""Guards whose drops are suspected false negatives."""


@dataclass
class Histogram:
    """Scores in -1..1; quantiles to 0.001."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(BINS + 1, np.int64))

    def add(self, scores: np.ndarray) -> None:
        """Count these scores."""
        at = np.clip(np.floor((scores.astype(np.float64) + 1) * (BINS / 2)), 0, BINS).astype(np.int64)
        self.counts += np.bincount(at, minlength=BINS + 1)

    def summary(self) -> dict[str, float] | None:
        """Quantiles, None when nothing was counted."""
        total = self.counts.sum()
        if not total:
            return None
        up = np.cumsum(self.counts)
        return {f"p{p:02d}": round(float(np.searchsorted(up, p / 100 * total)) * 2 / BINS - 1, 3) for p in (5, 25, 50, 75, 95)}


@dataclass
class Examples:
    """The most telling pairs of one kind: rows (gap, q, item, score, positive), smallest gap first."""

    rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 5)))

    def add(self, block: Block, mask: np.ndarray) -> None:
        """Consider the marked candidates."""
        i = np.flatnonzero(mask.any(1))  # one a query: variety
        positive = block.positive[i]
        gap = np.where(np.isnan(positive), 2.0, positive)[:, None] - block.scores[i].astype(np.float64)
        w = np.where(mask[i], gap, np.inf).argmin(1)
        new = np.stack([gap[np.arange(len(i)), w], block.q[i], block.items[i, w], block.scores[i, w], positive], 1)
        rows = np.concatenate([self.rows, new])
        self.rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))][:EXAMPLES]


class Audit:
    """Counts of one direction, block by block."""

    def __init__(self, queries: Items, candidates: Items):
        self.queries, self.candidates = queries, candidates
        self.first = dict.fromkeys(ORDER, 0)
        self.alone: dict[str, int] = {}
        self.spared: dict[str, int] = {}
        self.seen = self.mined = self.trusted = self.above = self.empty = self.short = self.nothing = 0
        self.by_source = dict.fromkeys(SOURCES, 0)
        self.scores = {"mined": Histogram(), "dropped": Histogram(), "positive": Histogram()}
        self.examples: dict[str, Examples] = {}

    def add(
        self,
        block: Block,
        masks: dict[str, np.ndarray],
        trusted: np.ndarray,
        reason: np.ndarray,
        chosen: np.ndarray,
        wanted: np.ndarray,
    ) -> None:
        """One block: masks by guard, trusted, reason [B, W] (0 kept), chosen [B, W], wanted [B]."""
        there = block.there
        self.seen += int(there.sum())
        self.mined += int(chosen.sum())
        self.trusted += int((trusted & there).sum())
        got = chosen.sum(1)
        self.empty += int((got == 0).sum())
        self.nothing += int((~there.any(1)).sum())
        self.short += int(((got > 0) & (got < wanted)).sum())
        for name, mask in masks.items():
            self.alone[name] = self.alone.get(name, 0) + int(mask.sum())
            self.spared[name] = self.spared.get(name, 0) + int((mask & trusted).sum())
        for number, name in enumerate(ORDER, 1):
            dropped = reason == number
            self.first[name] += int(dropped.sum())
            if name in GUESSES and dropped.any():
                self.examples.setdefault(name, Examples()).add(block, dropped)
        self.examples.setdefault("mined", Examples()).add(block, chosen)
        with np.errstate(invalid="ignore"):
            self.above += int((chosen & (block.scores >= block.positive[:, None])).sum())
        for number, name in enumerate(SOURCES):
            self.by_source[name] += int((chosen & (block.source == number)).sum())
        self.scores["mined"].add(block.scores[chosen])
        self.scores["dropped"].add(block.scores[(reason > 0) & there])
        self.scores["positive"].add(block.positive[~np.isnan(block.positive)])

    def document(self, served: np.ndarray, cap: int | None) -> dict[str, Any]:
        """The numbers as JSON. served [C]: how often each candidate is mined."""
        top = np.argsort(-served, kind="stable")[:10]
        ids = self.candidates.ids
        return {
            "queries": len(self.queries),
            "candidates": len(self.candidates),
            "looked_at": self.seen,
            "mined": self.mined,
            "mined_by_source": {k: v for k, v in self.by_source.items() if v},
            "mined_at_or_above_positive": self.above,
            "queries_with_none": self.empty,
            "queries_with_fewer": self.short,
            "queries_without_candidates": self.nothing,
            "dropped": {n: c for n, c in self.first.items() if c or n in self.alone},
            "dropped_alone": self.alone,
            "spared_by_labels": self.spared,
            "trusted_pairs": self.trusted,
            "suspected_false_negatives": sum(self.first[n] for n in GUESSES),
            "scores": {k: h.summary() for k, h in self.scores.items()},
            "hubs": {
                "cap": cap,
                "top": [{"id": ids[i], "serves": int(served[i])} for i in top if served[i]],
                "never_served": int((served == 0).sum()),
            },
        }

    def shown(self) -> dict[str, list[dict[str, Any]]]:
        """Examples by kind, with row ids."""
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
