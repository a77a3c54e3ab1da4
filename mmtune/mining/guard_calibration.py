"""What guards are worth, measured: on rows whose group is known, hide the groups and see what each guard does without them.

Then a candidate of the same group is a false negative that a guard ought to drop, and one of another group is a loss when
dropped. The same measurement calibrates the relative margin of a direction.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmtune.mining.candidates import Block, Sources
from mmtune.mining.guards import Guard
from mmtune.mining.hash_draws import id_hashes
from mmtune.relevance.positives import Positives
from mmtune.search.parallel import ordered_map

SAMPLE = 2000
ENOUGH = 50  # hidden positives below which a margin is not calibrated
FALLBACK = 0.05  # NV-Retriever's 95 % (arXiv 2407.15831)
GRID_OF_MARGINS = np.round(np.arange(0, 0.605, 0.01), 2)


@dataclass
class Measured:
    """Blocks of a sample of labelled queries searched with the groups hidden; truth bool [B, W]: same group."""

    blocks: list[Block] = field(default_factory=list)
    truth: list[np.ndarray] = field(default_factory=list)
    known: list[np.ndarray] = field(default_factory=list)

    @property
    def positives(self) -> int:
        """Hidden positives among the candidates."""
        return int(sum(t.sum() for t in self.truth))


def measure(
    hidden: Sources, truth: Positives, labelled_q: np.ndarray, labelled_c: np.ndarray, positive: np.ndarray
) -> Measured:
    """Search a sample of labelled queries that have mates. hidden: sources that know own rows only; truth: with groups."""
    q = np.flatnonzero(labelled_q)
    if len(q) > SAMPLE:
        q = np.sort(q[np.argsort(id_hashes([hidden.queries.ids[i] for i in q]), kind="stable")[:SAMPLE]])
    out = Measured()

    def search(part: np.ndarray) -> tuple[Block, np.ndarray]:
        block = hidden.top(part, positive[part])
        return block, truth.contains(part, block.items)

    parts = [q[start : start + hidden.block] for start in range(0, len(q), hidden.block)]
    for block, same in ordered_map(search, parts, hidden.threads):
        out.blocks.append(block)
        out.truth.append(same)
        out.known.append(block.there & labelled_c[block.items])
    return out


@dataclass
class Margin:
    """A relative margin and where it comes from."""

    value: float | None
    how: str
    caught: float | None = None
    lost: float | None = None


def calibrate(m: Measured) -> Margin:
    """The margin that best tells hidden positives from true negatives among the candidates: the largest (share of positives
    dropped) - (share of negatives dropped), Youden's J; of equals the smallest."""
    keep = [k & ~np.isnan(b.positive)[:, None] for b, k in zip(m.blocks, m.known, strict=True)]
    if not keep or sum(int((k & t).sum()) for k, t in zip(keep, m.truth, strict=True)) < ENOUGH:
        return Margin(FALLBACK, f"{FALLBACK:g}: fewer than {ENOUGH} labelled positives to calibrate on")
    truth = np.concatenate([t[k] for t, k in zip(m.truth, keep, strict=True)])
    gap, size = [], []
    for b, k in zip(m.blocks, keep, strict=True):
        positive = np.broadcast_to(b.positive[:, None], k.shape)[k]
        gap.append(positive - b.scores.astype(np.float64)[k])
        size.append(np.abs(positive))
    # dropped when score > positive - p |positive|, that is gap < p |positive|
    need = np.concatenate(gap) / np.maximum(np.concatenate(size), 1e-9)
    caught = np.array([(need[truth] < p).mean() for p in GRID_OF_MARGINS])
    lost = np.array([(need[~truth] < p).mean() if (~truth).any() else 0.0 for p in GRID_OF_MARGINS])
    best = int(np.argmax(np.round(caught - lost, 6)))
    if caught[best] - lost[best] <= 0:
        return Margin(FALLBACK, f"{FALLBACK:g}: scores do not tell labelled positives from negatives here")
    return Margin(float(GRID_OF_MARGINS[best]), "calibrated on labelled rows", float(caught[best]), float(lost[best]))


def precision(m: Measured, guard: Guard) -> dict[str, Any]:
    """Of each guard, by itself, with no pair trusted: dropped, right (same group), precision, recall, and the share of true
    negatives lost. Only candidates whose group is known count."""
    total = {"candidates": 0, "positives": 0}
    count: dict[str, list[int]] = {}
    for block, truth, known in zip(m.blocks, m.truth, m.known, strict=True):
        total["candidates"] += int(known.sum())
        total["positives"] += int((known & truth).sum())
        masks = guard.masks(block)
        if masks:
            masks["any"] = np.logical_or.reduce(list(masks.values()))
        for name, mask in masks.items():
            c = count.setdefault(name, [0, 0])
            c[0] += int((mask & known).sum())
            c[1] += int((mask & known & truth).sum())
    negatives = total["candidates"] - total["positives"]
    guards = {
        name: {
            "dropped": d,
            "right": r,
            "precision": r / d if d else None,
            "recall": r / total["positives"] if total["positives"] else None,
            "negatives_lost": (d - r) / negatives if negatives else None,
        }
        for name, (d, r) in count.items()
    }
    return {"queries": int(sum(len(b.q) for b in m.blocks)), **total, "guards": guards}
