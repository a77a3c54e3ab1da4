"""Classification by weighted k nearest neighbours (Wu et al., arXiv 1805.01978, section 3.4), and the task "knn".

It is not scikit-learn's KNeighborsClassifier, because some pairs have to be excluded (the item itself, clips of the same
recording), and ties are broken by the same total order as in all searches.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError, DataWarning
from mmtune.evaluation.clusters import recordings_in
from mmtune.evaluation.tasks.classified import Classified, confusion_counts
from mmtune.evaluation.tasks.task import (
    EvaluationTask,
    TaskInputs,
    check_neighbours,
    class_labels,
    grouped_by_class,
    row_values,
    warn_of_neighbours,
)
from mmtune.relevance.items import Items, names_to_labels, unique_items
from mmtune.search.exact import topk
from mmtune.search.vectors import normalize_rows

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

NEIGHBOURS, TEMPERATURE = 5, 0.07  # a neighbour's vote has the weight exp(cosine / 0.07), as in the paper

Exclusion = tuple[np.ndarray, np.ndarray]
"""Labels of the queries [Q] and of the references [N]; a pair with equal non-zero labels is excluded."""


@dataclass
class NearestNeighbours(EvaluationTask):
    """Classify each row by its nearest neighbours, and compare with its true class.

    label: "group" or a metadata column, the true class
    reference: DATA with labelled rows that vote; default: the other rows of the evaluated data
    neighbours: number of neighbours that vote
    exclude_same: a metadata column, e.g. the recording. Rows with the same value do not vote for each other, and `reference`
        must not share a value with the evaluated data.
    """

    label: str = "group"
    reference: "Data | str | None" = None
    neighbours: int = NEIGHBOURS
    exclude_same: str | None = None

    def run(self, inputs: TaskInputs) -> dict[str, Classified]:
        check_neighbours(self.neighbours)
        given = self.neighbours if self.neighbours != NEIGHBOURS else None
        labels, labelled = class_labels(inputs.data, self.label)
        reference = None if self.reference is None else inputs.reference_data(self.reference, self.exclude_same)
        vectors = grouped_by_class(inputs.data, inputs.embed(keep=labelled), labels)
        if reference is None:
            warn_of_neighbours(given, max(len(e.ids) for e in vectors.values()) - 1)
            if self.exclude_same is None and (found := recordings_in(inputs.data)) is not None:
                warnings.warn(
                    f"knn: {found.rows} rows are of {found.values} values of {found.column!r}, and pieces of one recording, which are alike, vote for "
                    f"each other: the accuracy on new recordings is lower; --exclude-same {found.column}, or a --reference, tells it",
                    DataWarning,
                    stacklevel=2,
                )
            source = source_of_rows(inputs.data, self.exclude_same)
            return {m: classify_among_themselves(vectors, m, self.neighbours, source) for m in vectors}
        reference_labels, reference_labelled = class_labels(reference, self.label)
        references = grouped_by_class(reference, inputs.embed(reference, reference_labelled), reference_labels)
        warn_of_neighbours(given, max(len(e.ids) for e in references.values()))
        return {
            m: _classify_by(m, e, references[m], self.neighbours, int((inputs.data.present[m] & ~labelled).sum()))
            for m, e in vectors.items()
        }


def source_of_rows(data: "Data", exclude_same: str | None) -> dict[str, str | None] | None:
    """Return {row id: value of column `exclude_same`}, or None without a column."""
    return dict(zip(data.ids, row_values(data, exclude_same), strict=True)) if exclude_same else None


def nearest(
    q_QD: np.ndarray,
    r_ND: np.ndarray,
    k: int,
    exclusion: Exclusion | None = None,
    order: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `k` nearest references of each query that are not excluded: (cosines float64 [Q, k], positions [Q, k]).

    If there are fewer than k, the rest of the row is -inf and -1.

    order: order of references with equal scores (see `tie_order`)
    """
    most = 0  # largest number of references that may be excluded for one query
    if exclusion is not None and exclusion[1].any():
        most = int(np.unique(exclusion[1][exclusion[1] != 0], return_counts=True)[1].max())
    score, index = topk(q_QD, r_ND, min(len(r_ND), k + most), order=order)
    allowed = np.ones(index.shape, bool)
    if exclusion is not None:
        allowed = (exclusion[0][:, None] != exclusion[1][index]) | (exclusion[0][:, None] == 0)
    front = np.argsort(~allowed, axis=1, kind="stable")[:, :k]  # allowed references first, nearest first
    score, index = np.take_along_axis(score, front, 1).astype(np.float64), np.take_along_axis(index, front, 1)
    excluded = ~np.take_along_axis(allowed, front, 1)
    score[excluded], index[excluded] = -np.inf, -1
    missing = max(0, k - score.shape[1])
    padding = ((0, 0), (0, missing))
    return np.pad(score, padding, constant_values=-np.inf), np.pad(index, padding, constant_values=-1)


def vote(score_QK: np.ndarray, class_QK: np.ndarray, classes: int) -> np.ndarray:
    """[Q]: the class whose neighbours have the largest total weight; 0 for queries without neighbours.

    Ties go to the last class, as in all rankings.
    """
    return vote_with_share(score_QK, class_QK, classes)[0]


def vote_with_share(score_QK: np.ndarray, class_QK: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of `vote` [Q], and the share of the total weight that this class has [Q], 0 without neighbours."""
    out, share = np.zeros(len(score_QK), np.int64), np.zeros(len(score_QK))
    for start in range(0, len(out), 1024):
        part = slice(start, start + 1024)
        votes = np.zeros((len(out[part]), classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], class_QK[part]), np.exp(score_QK[part] / TEMPERATURE))
        out[part] = np.where(votes.any(1), classes - 1 - votes[:, ::-1].argmax(1), 0)
        share[part] = votes.max(1) / np.maximum(votes.sum(1), np.finfo(np.float64).tiny)
    return out, share


def classify_by_reference(
    q_QD: np.ndarray, reference_ND: np.ndarray, names: Sequence[str], k: int = NEIGHBOURS, order: np.ndarray | None = None
) -> list[str]:
    """Classify each query by its `k` nearest references, whose classes are `names` [N].

    Raises DataError if all references have one class.
    """
    classes = sorted(set(names))
    if len(classes) < 2:
        raise DataError(f"{len(classes)} class among the references; classification by neighbours needs at least two")
    number = {c: i for i, c in enumerate(classes)}
    class_N = np.array([number[n] for n in names], np.int64)
    score, index = nearest(q_QD, reference_ND, k, order=order)
    return [classes[i] for i in vote(score, class_N[index], len(classes))]


def classify_among_themselves(
    vectors: Mapping[str, Embeddings], name: str, k: int = NEIGHBOURS, source: Mapping[str, str | None] | None = None
) -> Classified:
    """Classify each item of modality `name` by the groups of its `k` nearest other items.

    Rows with identical content are one item, which has no class if their groups differ.

    source: {row id: e.g. the recording}; items from the same source do not vote for each other

    Raises DataError unless at least two groups have two items.
    """
    e = vectors[name]
    items = unique_items(name, e)
    at, label = items_of_one_group(items, e.groups)
    classes = sorted(set(label))
    number = {g: i for i, g in enumerate(classes)}
    truth = np.array([number[g] for g in label], np.int64)
    if (np.bincount(truth, minlength=1) > 1).sum() < 2:
        raise DataError(f"{name}: fewer than two groups have two items, so neighbours cannot classify them")
    excluded = np.arange(1, len(at) + 1)
    if source is not None:
        source_N = names_to_labels([source.get(items.ids[i]) for i in at])
        excluded = np.where(source_N == 0, excluded, source_N)
    x_ND = np.asarray(items.vectors[at])
    score_NK, near_NK = nearest(x_ND, x_ND, k, (excluded, excluded))
    has_neighbour = np.isfinite(score_NK).any(1)
    predicted = vote(score_NK[has_neighbour], truth[near_NK[has_neighbour]], len(classes))
    confusion = confusion_counts(truth[has_neighbour], predicted, len(classes))
    skipped = len(items) - int(has_neighbour.sum())
    ids = [items.ids[i] for i in at[has_neighbour]]
    direction = f"{name}->{name}"
    return Classified(direction, classes, confusion, skipped, "neighbours", k, ids, truth[has_neighbour], predicted)


def _classify_by(name: str, rows: Embeddings, reference: Embeddings, k: int, skipped: int) -> Classified:
    """Classify each row by the items of `reference`. Items of identical content whose classes differ do not vote."""
    _, reference_ND, names = voting_references(name, reference)
    predicted = classify_by_reference(normalize_rows(rows.vectors, name), reference_ND, names, k)
    truth = [str(g) for g in rows.groups]
    classes = sorted({*truth, *predicted})
    number = {c: i for i, c in enumerate(classes)}
    true_N, predicted_N = (np.array([number[c] for c in named], np.int64) for named in (truth, predicted))
    confusion = confusion_counts(true_N, predicted_N, len(classes))
    direction = f"{name}->{name}"
    return Classified(direction, classes, confusion, skipped, "neighbours", k, list(rows.ids), true_N, predicted_N)


def voting_references(name: str, reference: Embeddings) -> tuple[list[str], np.ndarray, list[str]]:
    """Return (ids, vectors [N, D], classes) of the items of modality `name` that vote, where groups are classes.

    Rows with identical content are one item, which votes only if they have one class.
    """
    items = unique_items(name, reference)
    at, names = items_of_one_group(items, reference.groups)
    return [items.ids[i] for i in at], np.asarray(items.vectors)[at], names


def items_of_one_group(items: Items, groups: Sequence[str | None]) -> tuple[np.ndarray, list[str]]:
    """Return (positions [N] of the items whose rows have exactly one group, these groups). groups: the group of each row."""
    of_item = [{g for r in items.rows[i] if (g := groups[r]) is not None} for i in range(len(items))]
    at = [i for i, g in enumerate(of_item) if len(g) == 1]
    return np.array(at, np.int64), [next(iter(of_item[i])) for i in at]
