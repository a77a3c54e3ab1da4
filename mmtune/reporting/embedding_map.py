"""A two-dimensional map of the embedding space before and after tuning."""

from dataclasses import dataclass, field

import numpy as np

from mmtune.reporting.measured import SIDES, Measured

MAX_DOTS, MAX_GROUPS = 500, 8  # items on the map; groups with a colour of their own
CENTRE, RADIUS = 180, 168  # of the drawn area, on a map of 360 x 360 units


@dataclass
class MapDot:
    """One item on the map.

    x, y: coordinates
    colour: number of its group among the coloured groups, or -1
    shape: number of its modality
    title: tooltip
    """

    x: float
    y: float
    colour: int
    shape: int
    title: str


@dataclass
class SideMap:
    """The map of one model.

    variance: share of the variance that the two axes show
    gap: distance between the mean embeddings of the first two modalities (modality gap); None for a single modality
    """

    side: str
    dots: list[MapDot]
    variance: float
    gap: float | None


@dataclass
class EmbeddingMap:
    """The maps of both models.

    groups: names of the coloured groups; a dot's `colour` is the position in this list
    modalities: names of the modalities; a dot's `shape` is the position in this list
    shown: number of items on each map
    """

    maps: list[SideMap] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    modalities: list[str] = field(default_factory=list)
    shown: int = 0


def embedding_map(measured: Measured, seed: int = 0) -> EmbeddingMap:
    """Place at most MAX_DOTS items by their first two principal components.

    Each modality is centred on its own mean, because otherwise the first axis would show only the modality gap. The groups with
    the most items are coloured. The maps of the two models have different axes.
    """
    names = list(measured.vectors["before"])
    items = measured.items["before"]
    rng = np.random.default_rng(seed)
    picked = {m: np.sort(rng.permutation(len(items[m]))[: max(2, MAX_DOTS // len(names))]) for m in names}
    groups = {m: [_group(measured, m, i) for i in picked[m]] for m in names}
    counts: dict[str, int] = {}
    for known in (g for m in names for g in groups[m] if g is not None):
        counts[known] = counts.get(known, 0) + 1
    coloured = sorted(counts, key=lambda g: (-counts[g], g))[:MAX_GROUPS]
    out = EmbeddingMap(groups=coloured, modalities=names, shown=sum(map(len, picked.values())))
    for side in SIDES:
        vectors = [np.asarray(measured.items[side][m].vectors[picked[m]], np.float64) for m in names]
        means = [measured.items[side][m].vectors[np.arange(len(items[m]))].mean(0, dtype=np.float64) for m in names]
        flat, variance = principal_components(np.concatenate([v - c for v, c in zip(vectors, means, strict=True)]))
        low, high = np.quantile(flat, [0.003, 0.997], axis=0)
        reach = float((high - low).max()) / 2 or 1.0  # half the range, the same scale for both axes
        place_N2 = iter((((flat - (low + high) / 2) / reach).clip(-1, 1) * RADIUS + CENTRE).tolist())
        dots = []
        for shape, m in enumerate(names):
            for i, group in zip(picked[m], groups[m], strict=True):
                x, y = next(place_N2)
                title = items[m].ids[i] if group is None else f"{group} ({m} {items[m].ids[i]})"
                dots.append(MapDot(round(x, 1), round(y, 1), coloured.index(group) if group in coloured else -1, shape, title))
        dots.sort(key=lambda d: d.colour >= 0)  # draw coloured dots last, on top of the others
        gap = float(np.linalg.norm(means[0] - means[1])) if len(means) > 1 else None
        out.maps.append(SideMap(side, dots, variance, gap))
    return out


def _group(measured: Measured, modality: str, item: int) -> str | None:
    return measured.data.groups[measured.row_number[measured.items["before"][modality].ids[item]]]


def principal_components(x_ND: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the first two principal components [N, 2] of centred rows, and the share of the variance in them.

    The sign of each axis is chosen so that its largest component is positive. This uses NumPy's SVD because
    scikit-learn's PCA would centre the rows again, over all modalities.
    """
    _, s, axes = np.linalg.svd(x_ND, full_matrices=False)
    axes = axes[:2] * np.sign(axes[:2][np.arange(min(2, len(axes))), np.abs(axes[:2]).argmax(1)])[:, None]
    flat = x_ND @ axes.T
    if flat.shape[1] < 2:
        flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    return flat, float((s[:2] ** 2).sum() / max((s**2).sum(), 1e-12))
