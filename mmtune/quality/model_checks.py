"""Checks of the space a model makes: collapse, temperature, modality gap, hubs, rows whose neighbours disagree, cut inputs."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import Rejected
from mmtune.quality.findings import Finding, finding
from mmtune.relevance.items import Items, unite
from mmtune.search.exact import topk

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

COLLAPSED = 0.97  # mean cosine between unrelated items; CLIP-type towers lie near 0.5 to 0.7 (Liang et al. 2022)
FLAT = 2.0  # effective dimensions below which a space is a line
GAP = 1.2  # distance of the modalities' means; CLIP's own is about 0.8 (Liang et al. 2022, arXiv 2203.02053)
SCALE = (4.0, 105.0)  # CLIP starts at 14.3 and is clamped at 100
HUB = 0.2  # one candidate among the ten nearest of this share of all queries (Radovanović et al. 2010)
NEIGHBOURS = 10
AGREE = 0.7  # this share of a row's neighbours in one other group, and none in its own


def check(vectors: Mapping[str, Embeddings], facts: dict[str, Any], scales: Mapping[str, float] | None = None) -> list[Finding]:
    """Findings on one corpus; facts["space"] gets every number, also the harmless ones."""
    items = {m: unite(m, e) for m, e in vectors.items() if len(e.ids)}
    space: dict[str, Any] = {}
    out: list[Finding] = []
    for name, it in items.items():
        out += collapse(it, space) + mislabelled(name, it, vectors[name], space)
    for a in items:
        for b in items:
            if a != b:
                out += hubs(items[a], items[b], space)
            if a < b:
                out += gap(items[a], items[b], space)
    for name, value in (scales or {}).items():
        if name.split("->")[0] in items and name.split("->")[1] in items:
            space[f"temperature factor {name}"] = round(value, 3)
            if not SCALE[0] <= value <= SCALE[1]:
                what = f"the temperature factor of {name} is {value:.3g}, outside {SCALE[0]:g} to {SCALE[1]:g}"
                out.append(finding("scale-drift", "warning", [], what, "train again with a lower train.scale_lr", 1))
    facts["space"] = space
    return out


def collapse(items: Items, space: dict[str, Any], sample: int = 4000) -> list[Finding]:
    x = np.asarray(items.vectors[np.linspace(0, len(items) - 1, min(sample, len(items))).astype(int)], np.float64)
    if len(x) < 10:
        return []
    mean = x.mean(0)
    cosine = float((len(x) * mean @ mean - 1) / (len(x) - 1))  # mean over pairs of different items
    power = np.linalg.eigvalsh(np.cov(x.T)).clip(0)
    dims = float(power.sum() ** 2 / max((power**2).sum(), 1e-30))
    space[f"mean cosine of {items.name}"], space[f"effective dimensions of {items.name}"] = round(cosine, 4), round(dims, 2)
    if cosine < COLLAPSED and dims >= FLAT:
        return []
    what = f"{items.name} has collapsed: mean cosine {cosine:.3f} between unrelated items, {dims:.1f} effective dimensions"
    return [
        finding(
            "collapse", "error", [], what, "the model tells nothing apart: check its preprocessing, or train with a lower lr", 1
        )
    ]


def gap(a: Items, b: Items, space: dict[str, Any]) -> list[Finding]:
    distance = float(np.linalg.norm(np.asarray(a.vectors).mean(0) - np.asarray(b.vectors).mean(0)))
    space[f"gap {a.name}, {b.name}"] = round(distance, 4)
    if distance <= GAP:
        return []
    what = f"the means of {a.name} and {b.name} lie {distance:.2f} apart: in one index of both, a query finds its own kind only"
    return [finding("modality-gap", "warning", [], what, "search one modality at a time, or train this pair", 1)]


def hubs(queries: Items, candidates: Items, space: dict[str, Any]) -> list[Finding]:
    if min(len(queries), len(candidates)) < 10 * NEIGHBOURS:
        return []
    _, index = topk(np.asarray(queries.vectors), np.asarray(candidates.vectors), NEIGHBOURS)
    count = np.bincount(index.ravel(), minlength=len(candidates))
    name = f"{queries.name}->{candidates.name}"
    space[f"skew of occurrences {name}"] = round(float(((count - count.mean()) ** 3).mean() / max(count.std(), 1e-9) ** 3), 3)
    over = np.flatnonzero(count > HUB * len(queries))
    over = over[np.argsort(-count[over], kind="stable")]
    if not len(over):
        return []
    shown = [f"{candidates.ids[i]} (near {count[i]} of {len(queries)} queries)" for i in over]
    what = f"hubs in {name}: candidates among the ten nearest of more than {HUB:.0%} of all queries"
    return [
        finding("hubness", "warning", shown, what, "look at them first: blank or generic items; else train with hard negatives")
    ]


def mislabelled(name: str, items: Items, e: Embeddings, space: dict[str, Any]) -> list[Finding]:
    """Rows whose neighbours agree on another group (Wilson 1972), where neighbours can be trusted."""
    groups = [{g for r in items.rows[i] if (g := e.groups[r]) is not None} for i in range(len(items))]
    one = [i for i in range(len(items)) if len(groups[i]) == 1]
    if len(one) < 3 * NEIGHBOURS:
        return []
    label = [next(iter(groups[i])) for i in one]
    size = Counter(label)
    x = np.asarray(items.vectors[np.array(one)])
    _, index = topk(x, x, NEIGHBOURS + 1)
    suspects, agree = [], 0
    for i, row in enumerate(index.tolist()):
        near = [label[j] for j in row if j != i][:NEIGHBOURS]
        top, votes = Counter(near).most_common(1)[0]
        agree += top == label[i]
        if size[label[i]] > 3 and label[i] not in near and votes >= AGREE * len(near):
            suspects.append(f"{items.ids[one[i]]} ({label[i]}, its neighbours say {top})")
    space[f"neighbours agree on the group, {name}"] = round(agree / len(one), 4)
    if not suspects or agree < 0.5 * len(one):  # neighbours that are wrong more often than not accuse nobody
        return []
    what = f"{name}: rows whose neighbours all belong to another group"
    return [finding(f"mislabel-{name}", "warning", suspects, what, "look at them: the group may be wrong")]


def check_cut(data: "Data", model: "Model") -> list[Finding]:
    """Values whose end the tower never sees."""
    from mmtune import modalities
    from mmtune.modalities.quality import cut

    out = []
    for name in data.modalities:
        if name not in model.towers:
            continue
        known, preprocess, rows = modalities.get(name), model.towers[name].preprocess, []
        _, first = np.unique(data.labels[name], return_index=True)
        for i in sorted(first.tolist()):
            try:
                if data.present[name][i] and cut(preprocess, known.decode(data.read(i, name))):
                    rows.append(data.ids[i])
            except Rejected:
                continue  # counted as unreadable already
        if rows:
            what = f"{name}: longer than the model's tokenizer takes; the end is never seen"
            out.append(finding(f"cut-{name}", "warning", rows, what, "put what tells items apart first, or shorten"))
    return out
