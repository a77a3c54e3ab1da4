"""Classification by retrieval. Where words name the classes: whose lie nearest (zero-shot, CLIP, arXiv 2103.00020, 3.1); where
none do: what the nearest other items are (weighted k nearest neighbours, Wu et al., arXiv 1805.01978, 3.4)."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.tasks.knn import NEIGHBOURS, nearest, vote
from mmtune.relevance.items import Items, names_to_labels, unite
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import tie_order
from mmtune.search.vectors import unit


@dataclass
class Classified:
    """confusion [C, C]: rows of the true class (first axis) by the class found; classes without a row stay out of macro-F1.

    skipped: rows without a class, or of a class that nothing describes. how: "words" or "neighbours".
    """

    direction: str
    classes: list[str]
    confusion: np.ndarray
    skipped: int
    how: str = "words"

    @property
    def rows(self) -> int:
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / max(self.rows, 1))

    @property
    def macro_f1(self) -> float:
        """Mean F1 = 2 right / (true + found) over the classes that are true or found anywhere."""
        right, both = np.diag(self.confusion), self.confusion.sum(0) + self.confusion.sum(1)
        return float((2 * right[both > 0] / both[both > 0]).mean()) if both.any() else 0.0

    def __str__(self) -> str:
        how = "the nearest description" if self.how == "words" else f"the {NEIGHBOURS} nearest neighbours"
        scores = f"accuracy {self.accuracy:.4f}, macro-F1 {self.macro_f1:.4f}"
        return f"{self.direction} as classification by {how}: {scores} ({self.rows:,} rows, {len(self.classes)} classes)"

    def to_dict(self) -> dict[str, Any]:
        return {
            "direction": self.direction,
            "how": self.how,
            "rows": self.rows,
            "skipped": self.skipped,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
        }


def is_task(labels: Embeddings, name: str) -> bool:
    """Whether the values of modality `name` name classes: in two groups at least, and shared by two rows each on average.

    Where every row has words of its own, a class's words would hold the row's own: that is retrieval, not classification.
    """
    known = np.array([g is not None for g in labels.groups], bool)
    content = labels.labels.get(name)
    if content is None or len({g for g in labels.groups if g is not None}) < 2:
        return False
    return 2 * len(np.unique(content[known])) <= int(known.sum())


def count(truth: Sequence[int] | np.ndarray, found: Sequence[int] | np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix [C, C] of class numbers [N]."""
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (np.asarray(truth, np.int64), np.asarray(found, np.int64)), 1)
    return confusion


def of_one_group(items: Items, groups: Sequence[str | None]) -> tuple[np.ndarray, list[str]]:
    """(positions [N] of the items whose rows name one group, these groups); groups: of the rows."""
    said = [{g for r in items.rows[i] if (g := groups[r]) is not None} for i in range(len(items))]
    at = [i for i, g in enumerate(said) if len(g) == 1]
    return np.array(at, np.int64), [next(iter(said[i])) for i in at]


def classify(vectors: Mapping[str, Embeddings], pair: tuple[str, str]) -> Classified:
    """Give each row's `pair[0]` the group whose description is nearest: the mean of the group's distinct values of `pair[1]`,
    each of unit length, normalised again. Ties go to the class whose name is last, as everywhere.

    Raises DataError when fewer than two groups have a description.
    """
    a, b = (vectors[m] for m in pair)
    classes = sorted({g for g in b.groups if g is not None})
    classes = [classes[i] for i in tie_order(classes)]  # descending, so that argmax breaks ties by the total order
    if len(classes) < 2:
        raise DataError(f"{'->'.join(pair)}: {len(classes)} groups have a {pair[1]}; classification needs two")
    number = {g: i for i, g in enumerate(classes)}
    z, content = unit(b.vectors, pair[1]), b.labels.get(pair[1])
    sums = np.zeros((len(classes), z.shape[1]), np.float64)
    seen: set[tuple[str, int]] = set()
    for i, group in enumerate(b.groups):
        key = (group or "", int(content[i]) if content is not None else -1 - i)
        if group is not None and key not in seen:
            seen.add(key)
            sums[number[group]] += z[i]
    at = np.array([i for i, g in enumerate(a.groups) if g in number], np.int64)
    truth = np.array([number[a.groups[i]] for i in at], np.int64)
    found = exact_keys(unit(a.vectors[at], pair[0]), unit(sums.astype(np.float32), pair[1])).argmax(1)
    up = len(classes) - 1 - np.arange(len(classes))
    confusion = count(up[truth], up[found], len(classes))
    return Classified("->".join(pair), classes[::-1], confusion, len(a.groups) - len(at))


def by_neighbours(
    vectors: Mapping[str, Embeddings], name: str, k: int = NEIGHBOURS, apart: Mapping[str, str | None] | None = None
) -> Classified:
    """Give each item of modality `name` the group that its `k` nearest others vote for, itself left out. Items of identical
    content are one, and of no class when their groups differ. apart: row id -> what it was cut from; items of one recording
    do not vote for each other. Raises DataError for fewer than two groups of two items."""
    e = vectors[name]
    items = unite(name, e)
    at, label = of_one_group(items, e.groups)
    classes = sorted(set(label))
    number = {g: i for i, g in enumerate(classes)}
    truth = np.array([number[g] for g in label], np.int64)
    if (np.bincount(truth, minlength=1) > 1).sum() < 2:
        raise DataError(f"{name}: fewer than two groups have two items; neighbours have nothing to say")
    bar = np.arange(1, len(at) + 1)
    if apart is not None:
        origin = names_to_labels([apart.get(items.ids[i]) for i in at])
        bar = np.where(origin == 0, bar, origin)
    x_ND = np.asarray(items.vectors[at])
    score_NK, near_NK = nearest(x_ND, x_ND, k, (bar, bar))
    heard = np.isfinite(score_NK).any(1)
    found = vote(score_NK[heard], truth[near_NK[heard]], len(classes))
    confusion = count(truth[heard], found, len(classes))
    return Classified(f"{name}->{name}", classes, confusion, len(items) - int(heard.sum()), "neighbours")


def tasks(vectors: Mapping[str, Embeddings], described: Mapping[str, Embeddings] | None = None) -> list[Classified]:
    """What can be classified: by words where a modality of words names classes; else each modality by its neighbours.

    described: the words as class names, where the model has a prompt for these (`embed.embed_classes`).
    """
    words = [m for m in vectors if modalities.get(m).language and is_task(vectors[m], m)]
    if found := [classify({**vectors, **(described or {})}, (a, b)) for b in words for a in vectors if a != b]:
        return found
    out = []
    for name in vectors:
        with contextlib.suppress(DataError):  # no two groups of two
            out.append(by_neighbours(vectors, name))
    return out
