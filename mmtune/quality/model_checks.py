"""Checks of a model's embedding space: collapse, logit scale, modality gap, hubs, suspected wrong labels, truncated inputs."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import Rejected
from mmtune.quality.findings import Finding, Measurements, finding
from mmtune.quality.suspect_labels import MIN_AGREEMENT, suspect_labels
from mmtune.relevance.items import Items, unique_items
from mmtune.search.exact import topk

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

COLLAPSED = 0.97  # mean cosine between unrelated items; CLIP-type encoders have about 0.5 to 0.7 (Liang et al. 2022)
MIN_EFFECTIVE_DIMS = 2.0  # with fewer effective dimensions, all items lie nearly on a line
MAX_GAP = 1.2  # distance between the means of two modalities; about 0.8 for CLIP (Liang et al. 2022, arXiv 2203.02053)
LOGIT_SCALE_RANGE = (4.0, 105.0)  # CLIP starts training at 14.3 and clamps at 100
HUB = 0.2  # a hub is among the ten nearest candidates of more than this share of all queries (Radovanović et al. 2010)
NEIGHBOURS = 10  # number of nearest items that the checks look at
MIN_ROWS = 4  # groups with fewer rows give no evidence about their rows
SUSPECT = 0.7  # a row's group is suspected if this share of its neighbours is in one other group, and none in its own


def check_space(
    vectors: Mapping[str, Embeddings], space: Measurements, scales: Mapping[str, float] | None = None
) -> list[Finding]:
    """Check the embedding space on one corpus.

    space: all measurements are added to this dict, including harmless ones
    scales: {direction: logit scale}; modalities without one were never trained as a pair and are not compared. None compares all
    """
    items = {m: unique_items(m, e) for m, e in vectors.items() if len(e.ids)}
    out: list[Finding] = []
    for name, of_modality in items.items():
        out += check_collapse(of_modality, space) + check_labels(name, of_modality, vectors[name], space)
    for a in items:
        for b in items:
            if a == b:
                continue
            if scales is not None and f"{a}->{b}" not in scales:
                space[f"never trained as a pair {a}->{b}"] = 1
                continue
            out += check_hubs(items[a], items[b], space)
            if a < b:
                out += check_gap(items[a], items[b], space)
    for name, value in (scales or {}).items():
        if all(m in items for m in name.split("->")):
            space[f"temperature factor {name}"] = round(value, 3)
            low, high = LOGIT_SCALE_RANGE
            if not low <= value <= high:
                message = f"the logit scale of {name} is {value:.3g}, outside {low:g} to {high:g}"
                out.append(finding("scale-drift", "warning", [], message, "train again with a lower train.scale_lr", 1))
    return out


def check_collapse(items: Items, space: Measurements, sample: int = 4000) -> list[Finding]:
    """Check whether all items are nearly at one point or on a line.

    Measures the mean cosine between different items, and the effective dimensions: the participation ratio of the covariance's
    eigenvalues, (sum of eigenvalues)^2 / (sum of their squares).
    """
    x = np.asarray(items.vectors[np.linspace(0, len(items) - 1, min(sample, len(items))).astype(int)], np.float64)
    if len(x) < 10:
        return []
    mean = x.mean(0)
    cosine = float((len(x) * mean @ mean - 1) / (len(x) - 1))
    power = np.linalg.eigvalsh(np.cov(x.T)).clip(0)
    dims = float(power.sum() ** 2 / max((power**2).sum(), 1e-30))
    space[f"mean cosine of {items.name}"], space[f"effective dimensions of {items.name}"] = round(cosine, 4), round(dims, 2)
    if cosine < COLLAPSED and dims >= MIN_EFFECTIVE_DIMS:
        return []
    message = f"{items.name} has collapsed: mean cosine {cosine:.3f} between unrelated items, {dims:.1f} effective dimensions"
    fix = "the model does not separate items: check its preprocessing, or train with a lower lr"
    return [finding("collapse", "error", [], message, fix, 1)]


def check_gap(a: Items, b: Items, space: Measurements) -> list[Finding]:
    """Check the modality gap, the distance between the means of two modalities."""
    distance = float(np.linalg.norm(np.asarray(a.vectors).mean(0) - np.asarray(b.vectors).mean(0)))
    space[f"gap {a.name}, {b.name}"] = round(distance, 4)
    if distance <= MAX_GAP:
        return []
    message = (
        f"the means of {a.name} and {b.name} are {distance:.2f} apart: in an index of both, a query finds only items of "
        "its own modality"
    )
    return [finding("modality-gap", "warning", [], message, "search one modality at a time, or train this pair", 1)]


def check_hubs(queries: Items, candidates: Items, space: Measurements) -> list[Finding]:
    """Check for hubs, candidates that are among the nearest of very many queries."""
    if min(len(queries), len(candidates)) < 10 * NEIGHBOURS:
        return []
    _, index = topk(np.asarray(queries.vectors), np.asarray(candidates.vectors), NEIGHBOURS)
    count = np.bincount(index.ravel(), minlength=len(candidates))
    name = f"{queries.name}->{candidates.name}"
    skewness = float(((count - count.mean()) ** 3).mean() / max(count.std(), 1e-9) ** 3)
    space[f"skew of occurrences {name}"] = round(skewness, 3)
    hubs = np.flatnonzero(count > HUB * len(queries))
    hubs = hubs[np.argsort(-count[hubs], kind="stable")]
    if not len(hubs):
        return []
    examples = [f"{candidates.ids[i]} (near {count[i]} of {len(queries)} queries)" for i in hubs]
    message = f"hubs in {name}: candidates among the ten nearest of more than {HUB:.0%} of all queries"
    fix = "look at them first: blank or generic items; else train with hard negatives"
    return [finding("hubness", "warning", examples, message, fix, ids=[candidates.ids[i] for i in hubs])]


def check_labels(name: str, items: Items, e: Embeddings, space: Measurements) -> list[Finding]:
    """Find rows whose neighbours agree on another group (Wilson 1972), or of which a classifier says another one.

    Neighbours that mostly disagree with the labels are no evidence, nor is such a classifier. Groups of fewer than four rows are left out.
    """
    groups = [{g for r in items.rows[i] if (g := e.groups[r]) is not None} for i in range(len(items))]
    labelled = [i for i in range(len(items)) if len(groups[i]) == 1]
    if len(labelled) < 3 * NEIGHBOURS:
        return []
    label = [next(iter(groups[i])) for i in labelled]
    size = Counter(label)
    x_ND = np.asarray(items.vectors[np.array(labelled)])
    _, index = topk(x_ND, x_ND, NEIGHBOURS + 1)
    suspects: dict[int, str] = {}
    agreeing = 0
    for i, row in enumerate(index.tolist()):
        near = [label[j] for j in row if j != i][:NEIGHBOURS]
        top, votes = Counter(near).most_common(1)[0]
        agreeing += top == label[i]
        if size[label[i]] >= MIN_ROWS and label[i] not in near and votes >= SUSPECT * len(near):
            suspects[i] = top
    space[f"neighbours agree on the group, {name}"] = round(agreeing / len(labelled), 4)
    if agreeing < MIN_AGREEMENT * len(labelled):
        suspects = {}
    large = [i for i, of in enumerate(label) if size[of] >= MIN_ROWS]
    names, number = np.unique([label[i] for i in large], return_inverse=True)
    if len(names) > 1:
        found = suspect_labels(x_ND[large], number)
        suspects = {large[r]: str(names[c]) for r, c in zip(found.rows, found.predicted, strict=True)} | suspects
    if not suspects:
        return []
    ids = {i: items.ids[labelled[i]] for i in sorted(suspects)}
    examples = [f"{ids[i]} ({label[i]}, looks like {suspects[i]})" for i in ids]
    message = f"{name}: rows that look like another group: their neighbours or a classifier that has not seen them say so"
    return [
        finding(f"mislabel-{name}", "warning", examples, message, "look at them: the group may be wrong", ids=[*ids.values()])
    ]


def check_truncated_inputs(data: "Data", model: "Model") -> list[Finding]:
    """Find captions that the model's tokenizer truncates."""
    from mmtune import modalities
    from mmtune.modalities.quality import is_truncated

    out = []
    for name in data.modalities:
        if name not in model.towers:
            continue
        modality, preprocess, rows = modalities.get(name), model.towers[name].preprocess, []
        _, first = np.unique(data.labels[name], return_index=True)
        for i in sorted(first.tolist()):
            try:
                if data.present[name][i] and is_truncated(preprocess, modality.decode(data.read(i, name))):
                    rows.append(data.ids[i])
            except Rejected:
                continue  # already reported as unreadable by `value_checks`
        if rows:
            message = f"{name}: longer than the model's maximum length; the end is cut off"
            fix = "put the distinguishing details first, or shorten the texts"
            out.append(finding(f"cut-{name}", "warning", rows, message, fix))
    return out
