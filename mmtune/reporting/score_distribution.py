"""How the scores of right and wrong pairs lie, and how the space looks in two dimensions."""

from dataclasses import dataclass, field

import numpy as np

from mmtune.reporting.measured import SIDES, Measured
from mmtune.reporting.plots import Chart, chart
from mmtune.search.tie_order import to_scores

QUERIES, PAIRS, BINS = 500, 200_000, 36
DOTS, COLOURS = 500, 8


@dataclass
class Scores:
    """One direction before and after. separation: how often a right pair scores above a wrong one (0.5: never told apart)."""

    direction: str
    charts: dict[str, Chart]
    separation: dict[str, float]


def scores(found: Measured, seed: int = 0) -> list[Scores]:
    """Histograms of right and wrong pairs over at most QUERIES queries of each direction, drawn once for both sides."""
    out: list[Scores] = []
    done: set[frozenset[str]] = set()
    for name in found.across:
        if frozenset(name.split("->")) in done:
            continue  # the other way round the pairs are the same
        done.add(frozenset(name.split("->")))
        rng, right = np.random.default_rng(seed), found.right(name)
        usable = np.array([i for i, r in enumerate(right) if len(r)], np.int64)
        chosen = np.sort(rng.permutation(usable)[:QUERIES])
        both = {side: _pairs(found, name, side, chosen, right, seed) for side in SIDES}
        if all(len(g) and len(b) for g, b in both.values()):
            out.append(_scores(name, both))
    return out


def _pairs(
    found: Measured, name: str, side: str, chosen: np.ndarray, right: list[np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the right pairs of the chosen queries, and of about PAIRS wrong ones, the same pairs on either side."""
    rng = np.random.default_rng(seed)
    good: list[np.ndarray] = []
    bad: list[np.ndarray] = []
    each = max(1, PAIRS // max(len(chosen), 1))
    block = max(1, 20_000_000 // max(len(found.sides(name, side)[1]), 1))
    for start in range(0, len(chosen), block):
        for keys, q in zip(found.keys(name, side, chosen[start : start + block]), chosen[start : start + block], strict=True):
            wrong = np.ones(len(keys), bool)
            wrong[right[q]] = False
            at = np.flatnonzero(wrong & (keys > np.iinfo(np.int32).min))
            good.append(keys[right[q]])
            bad.append(keys[at[rng.integers(0, len(at), each)] if len(at) > each else at])
    return tuple(to_scores(np.concatenate(x)) if x else np.empty(0, np.float32) for x in (good, bad))  # type: ignore[return-value]


def _scores(name: str, both: dict[str, tuple[np.ndarray, np.ndarray]]) -> Scores:
    every = np.concatenate([x for pair in both.values() for x in pair])
    step = max(float(every.max() - every.min()), 1e-3) / BINS
    edges = float(every.min()) + step * np.arange(-1, BINS + 2)  # an empty bin at each end: hills begin and end at 0
    middle = (edges[1:] + edges[:-1]) / 2
    charts, apart = {}, {}
    for side, (good, bad) in both.items():
        apart[side] = separation(good, bad)
        told = f"Cosine of right pairs: median {np.median(good):.2f}; of wrong pairs: median {np.median(bad):.2f}."
        shares = [np.histogram(x, edges)[0] / len(x) * 100 for x in (bad, good)]
        series = [("wrong pairs", "area wrong", middle, shares[0]), ("right pairs", "area right", middle, shares[1])]
        charts[side] = chart(f"{side.capitalize()}", told, series, "cosine, % of pairs", zero=True, legend=False)
    return Scores(name, charts, apart)


def separation(good: np.ndarray, bad: np.ndarray) -> float:
    """Share of (right, wrong) pairs where the right one scores higher, a tie counting half: the area under the ROC curve."""
    order = np.sort(bad)
    below = np.searchsorted(order, good, "left") + np.searchsorted(order, good, "right")
    return float(below.mean() / (2 * len(bad)))


@dataclass
class Dot:
    x: float
    y: float
    colour: int
    shape: int
    title: str


@dataclass
class Map:
    """One side's map. kept: share of the variance that the two axes show; gap: distance between the modalities' means."""

    side: str
    dots: list[Dot]
    kept: float
    gap: float | None


@dataclass
class Space:
    """groups: the coloured ones in order; shapes: modalities in order."""

    maps: list[Map] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    shown: int = 0


def space(found: Measured, seed: int = 0) -> Space:
    """Principal components of at most DOTS items, every modality centred on its own mean (else the first axis only shows the
    gap between modalities). Colours: the groups with the most items. The axes of the two sides are not the same."""
    names = list(found.vectors["before"])
    items = found.items["before"]
    rng, picked = np.random.default_rng(seed), {}
    for m in names:
        picked[m] = np.sort(rng.permutation(len(items[m]))[: max(2, DOTS // len(names))])
    groups = {m: [_group(found, m, i) for i in picked[m]] for m in names}
    counts: dict[str, int] = {}
    for known in [x for m in names for x in groups[m] if x is not None]:
        counts[known] = counts.get(known, 0) + 1
    top = sorted(counts, key=lambda g: (-counts[g], g))[:COLOURS]
    out = Space(groups=top, shapes=names, shown=sum(map(len, picked.values())))
    for side in SIDES:
        parts = [np.asarray(found.items[side][m].vectors[picked[m]], np.float64) for m in names]
        means = [found.items[side][m].vectors[np.arange(len(items[m]))].mean(0, dtype=np.float64) for m in names]
        flat, kept = components(np.concatenate([p - c for p, c in zip(parts, means, strict=True)]))
        low, high = np.quantile(flat, [0.003, 0.997], axis=0)
        reach = float((high - low).max()) / 2 or 1.0  # one scale for both axes
        place = ((flat - (low + high) / 2) / reach).clip(-1, 1) * 168 + 180
        dots, at = [], 0
        for shape, m in enumerate(names):
            for i, g in zip(picked[m], groups[m], strict=True):
                colour = top.index(g) if g in top else -1
                title = items[m].ids[i] if g is None else f"{g} ({m} {items[m].ids[i]})"
                dots.append(Dot(round(float(place[at, 0]), 1), round(float(place[at, 1]), 1), colour, shape, title))
                at += 1
        dots.sort(key=lambda d: d.colour >= 0)  # coloured dots on top
        gap = float(np.linalg.norm(means[0] - means[1])) if len(means) > 1 else None
        out.maps.append(Map(side, dots, kept, gap))
    return out


def _group(found: Measured, modality: str, item: int) -> str | None:
    return found.data.groups[found.row[found.items["before"][modality].ids[item]]]


def components(x_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal components [N, 2] of centred rows and the share of variance in them; the sign of each axis is
    fixed so that its largest entry is positive."""
    _, s, axes = np.linalg.svd(x_ND, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(min(2, len(axes))), np.abs(axes[:2]).argmax(1)])[:, None]
    flat = x_ND @ axes.T
    if flat.shape[1] < 2:
        flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    return flat, float((s[:2] ** 2).sum() / max((s**2).sum(), 1e-12))
