"""Classify for reports: by class descriptions if texts name the groups, otherwise by nearest neighbours.

By descriptions, each row gets the group whose description is nearest, as in CLIP's zero-shot classification (arXiv 2103.00020,
section 3.1).
"""

import contextlib
from collections.abc import Mapping

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.tasks.classified import Classified, confusion_counts
from mmtune.evaluation.tasks.knn import classify_among_themselves
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import tie_order
from mmtune.search.vectors import normalize_rows


def names_classes(e: Embeddings, name: str) -> bool:
    """Return whether the texts of modality `name` name classes.

    That is the case if there are at least two groups, and a text is shared by two rows on average. If every row has its own
    caption instead, a group's description would contain the classified row's own caption, which makes it a retrieval task.
    """
    labelled = np.array([g is not None for g in e.groups], bool)
    content = e.labels.get(name)
    if content is None or len({g for g in e.groups if g is not None}) < 2:
        return False
    return 2 * len(np.unique(content[labelled])) <= int(labelled.sum())


def classify_by_descriptions(vectors: Mapping[str, Embeddings], pair: tuple[str, str]) -> Classified:
    """Classify the rows of modality `pair[0]` by the group with the nearest description in modality `pair[1]`.

    A group's description is the mean of its distinct L2-normalised vectors, normalised again. Ties go to the class whose name
    comes last, as in all rankings. Raises DataError if fewer than two groups have a description.
    """
    a, b = (vectors[m] for m in pair)
    classes = sorted({g for g in b.groups if g is not None})
    classes = [classes[i] for i in tie_order(classes)]  # descending, so that argmax breaks ties by the total order
    if len(classes) < 2:
        raise DataError(f"{'->'.join(pair)}: {len(classes)} groups have a {pair[1]}; classification needs at least two")
    number = {g: i for i, g in enumerate(classes)}
    z, content = normalize_rows(b.vectors, pair[1]), b.labels.get(pair[1])
    sums = np.zeros((len(classes), z.shape[1]), np.float64)
    counted: set[tuple[str, int]] = set()
    for i, group in enumerate(b.groups):
        key = (group or "", int(content[i]) if content is not None else -1 - i)
        if group is not None and key not in counted:
            counted.add(key)
            sums[number[group]] += z[i]
    at = np.array([i for i, g in enumerate(a.groups) if g in number], np.int64)
    truth = np.array([number[a.groups[i]] for i in at], np.int64)
    predicted = exact_keys(normalize_rows(a.vectors[at], pair[0]), normalize_rows(sums.astype(np.float32), pair[1])).argmax(1)
    ascending = len(classes) - 1 - np.arange(len(classes))
    confusion = confusion_counts(ascending[truth], ascending[predicted], len(classes))
    return Classified("->".join(pair), classes[::-1], confusion, len(a.groups) - len(at))


def classifications(
    vectors: Mapping[str, Embeddings], descriptions: Mapping[str, Embeddings] | None = None
) -> list[Classified]:
    """Classify by descriptions if a text modality names classes, otherwise each modality by its nearest neighbours.

    descriptions: the texts embedded with the model's prompts for class names, if it has such prompts (`embed_classes`)
    """
    naming = [m for m in vectors if modalities.get(m).language and names_classes(vectors[m], m)]
    both = {**vectors, **(descriptions or {})}
    if out := [classify_by_descriptions(both, (a, b)) for b in naming for a in vectors if a != b]:
        return out
    for name in vectors:
        with contextlib.suppress(DataError):  # raised if fewer than two groups have two items
            out.append(classify_among_themselves(vectors, name))
    return out
