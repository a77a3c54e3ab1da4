"""How the scores of right and wrong pairs lie, and how the space looks in two dimensions."""

from dataclasses import dataclass, field

import numpy as np

from mmtune.report.measured import SIDES, Measured
from mmtune.report.plots import Chart, chart
from mmtune.similarity import to_scores

QUERIES, PAIRS, BINS = 500, 200_000, 48
DOTS, COLOURS = 500, 8


@dataclass
class Scores:
    """One direction before and after. separation: how often a right pair scores above a wrong one (0.5: never told apart)."""

    direction: str
    charts: dict[str, Chart]
    separation: dict[str, float]


def scores(found: Measured, seed: int = 0) -> list[Scores]:
    """Histograms of right and wrong pairs over at most QUERIES queries of each direction, drawn once for both sides."""
    out = []
    for name in found.across:
        rng, right = np.random.default_rng(seed), found.right(name)
        usable = np.array([i for i, r in enumerate(right) if len(r)], np.int64)
        chosen = np.sort(rng.permutation(usable)[:QUERIES])
        both = {}
        for side in SIDES:
            keys = found.keys(name, side, chosen)
            mask = np.zeros(keys.shape, bool)
            for i, q in enumerate(chosen):
                mask[i, right[q]] = True
            there = keys > np.iinfo(np.int32).min
            good, bad = to_scores(keys[mask & there]), to_scores(keys[~mask & there])
            both[side] = good, bad[np.random.default_rng(seed).integers(0, len(bad), PAIRS)] if len(bad) > PAIRS else bad
        if all(len(g) and len(b) for g, b in both.values()):
            out.append(_scores(name, both))
    return out


def _scores(name: str, both: dict[str, tuple[np.ndarray, np.ndarray]]) -> Scores:
    every = np.concatenate([x for pair in both.values() for x in pair])
    edges = np.linspace(float(every.min()), max(float(every.max()), float(every.min()) + 1e-3), BINS + 1)
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
    for g in [x for m in names for x in groups[m] if x is not None]:
        counts[g] = counts.get(g, 0) + 1
    top = sorted(counts, key=lambda g: (-counts[g], g))[:COLOURS]
    out = Space(groups=top, shapes=names, shown=sum(map(len, picked.values())))
    for side in SIDES:
        parts = [np.asarray(found.items[side][m].vectors[picked[m]], np.float64) for m in names]
        means = [np.asarray(found.items[side][m].vectors[np.arange(len(items[m]))], np.float64).mean(0) for m in names]
        flat, kept = components(np.concatenate([p - c for p, c in zip(parts, means, strict=True)]))
        reach = float(np.quantile(np.abs(flat), 0.995)) or 1.0
        place = (flat / reach).clip(-1, 1) * 168 + 180
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
