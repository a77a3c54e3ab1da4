"""Measure the guards on rows whose group is known: hide the groups, and count what each guard would drop without them.

With the groups hidden, a candidate of the query's own group is a false negative, which a guard should drop. Dropping a
candidate of another group loses a true negative. The same measurement calibrates the relative margin of a direction.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.mining.candidate_block import CandidateBlock
from mmtune.mining.candidates import CandidateSearch
from mmtune.mining.guards import GuardChain
from mmtune.mining.id_hashes import id_hashes
from mmtune.relevance.positives import Positives
from mmtune.search.parallel import ordered_map

MAX_QUERIES = 2000
"""Maximum number of labelled queries in the sample."""
MIN_POSITIVES = 50
"""Minimum number of hidden positives needed to calibrate a margin."""
FALLBACK_MARGIN = 0.05
"""Relative margin without calibration: NV-Retriever (arXiv 2407.15831) drops scores above 95 % of the positive's."""
MARGINS = np.round(np.arange(0, 0.605, 0.01), 2)
"""Relative margins among which calibration chooses."""


@dataclass
class LabelledSample:
    """The search results for a sample of labelled queries. The three lists have one entry per block.

    positive: bool [B, W], the candidate has the query's group
    known: bool [B, W], the candidate has a group
    """

    blocks: list[CandidateBlock] = field(default_factory=list)
    positive: list[np.ndarray] = field(default_factory=list)
    known: list[np.ndarray] = field(default_factory=list)


def search_labelled(
    search: CandidateSearch,
    truth: Positives,
    positive_score: np.ndarray,
    is_known: Callable[[CandidateBlock], np.ndarray] | None = None,
) -> LabelledSample:
    """Search candidates for a sample of the labelled queries.

    search: a search for which the groups are hidden, so that it does not leave out the group's positives
    truth: the positives according to the groups
    positive_score: float64 [Q], the score with which margins compare
    is_known: additional condition on candidates, function of the block that returns bool [B, W]
    """
    queries, candidates = truth.queries.labelled, truth.candidates.labelled
    q = np.flatnonzero(queries)
    if len(q) > MAX_QUERIES:
        draw = id_hashes([truth.queries.ids[i] for i in q])
        q = np.sort(q[np.argsort(draw, kind="stable")[:MAX_QUERIES]])
    sample = LabelledSample()

    def search_block(part: np.ndarray) -> tuple[CandidateBlock, np.ndarray]:
        block = search.top(part, positive_score[part])
        return block, truth.contains(part, block.candidates)

    for block, positive in ordered_map(search_block, search.blocks(q), search.threads):
        known = block.filled & candidates[block.candidates]
        sample.blocks.append(block)
        sample.positive.append(positive)
        sample.known.append(known if is_known is None else known & is_known(block))
    return sample


@dataclass
class CalibratedMargin:
    """A relative margin.

    value: the margin; None: no relative margin
    how: where it comes from, e.g. "calibrated on labelled rows"
    caught: share of hidden positives that it drops
    lost: share of true negatives that it drops
    """

    value: float | None
    how: str
    caught: float | None = None
    lost: float | None = None

    def to_dict(self) -> JsonObject:
        """Return the margin as JSON, for the audit."""
        return asdict(self)

    @staticmethod
    def fallback(why: str) -> "CalibratedMargin":
        """Return the published margin, used if calibration is impossible for the reason `why`."""
        return CalibratedMargin(FALLBACK_MARGIN, f"{FALLBACK_MARGIN:g}: {why}")


def calibrate_margin(sample: LabelledSample) -> CalibratedMargin:
    """Return the margin that best separates hidden positives from true negatives.

    It maximises Youden's J = (share of positives dropped) - (share of negatives dropped). Of equal margins the smallest is
    chosen.
    """
    keep = [k & ~np.isnan(b.positive_score)[:, None] for b, k in zip(sample.blocks, sample.known, strict=True)]
    if sum(int((k & p).sum()) for k, p in zip(keep, sample.positive, strict=True)) < MIN_POSITIVES:
        return CalibratedMargin.fallback(f"fewer than {MIN_POSITIVES} labelled positives to calibrate on")
    positive = np.concatenate([p[k] for p, k in zip(sample.positive, keep, strict=True)])
    gap, size = [], []
    for block, k in zip(sample.blocks, keep, strict=True):
        of_positive = np.broadcast_to(block.positive_score[:, None], k.shape)[k]
        gap.append(of_positive - block.scores.astype(np.float64)[k])
        size.append(np.abs(of_positive))
    # a candidate is dropped if score > positive - p |positive|, i.e. if gap < p |positive|
    needed = np.concatenate(gap) / np.maximum(np.concatenate(size), 1e-9)
    caught = np.array([(needed[positive] < p).mean() for p in MARGINS])
    lost = np.array([(needed[~positive] < p).mean() if (~positive).any() else 0.0 for p in MARGINS])
    best = int(np.argmax(np.round(caught - lost, 6)))
    if caught[best] - lost[best] <= 0:
        return CalibratedMargin.fallback("scores do not separate labelled positives from negatives here")
    return CalibratedMargin(float(MARGINS[best]), "calibrated on labelled rows", float(caught[best]), float(lost[best]))


def guard_quality(sample: LabelledSample, guards: GuardChain) -> JsonObject:
    """Measure each guard by itself, and all together ("any"), on candidates whose group is known.

    Pairs that labels say are negative are not exempt here.

    Returns the sample's counts and for each guard: dropped, right (dropped candidates of the query's group), precision, recall,
    and negatives_lost (share of true negatives dropped).
    """
    candidates = positives = 0
    count: dict[str, list[int]] = {}
    for block, positive, known in zip(sample.blocks, sample.positive, sample.known, strict=True):
        candidates += int(known.sum())
        positives += int((known & positive).sum())
        masks = guards.masks(block)
        if masks:
            masks["any"] = np.logical_or.reduce(list(masks.values()))
        for name, mask in masks.items():
            c = count.setdefault(name, [0, 0])
            c[0] += int((mask & known).sum())
            c[1] += int((mask & known & positive).sum())
    negatives = candidates - positives
    quality = {
        name: {
            "dropped": dropped,
            "right": right,
            "precision": right / dropped if dropped else None,
            "recall": right / positives if positives else None,
            "negatives_lost": (dropped - right) / negatives if negatives else None,
        }
        for name, (dropped, right) in count.items()
    }
    queries = int(sum(len(b.queries) for b in sample.blocks))
    return {"queries": queries, "candidates": candidates, "positives": positives, "guards": quality}
