"""Classification by descriptions: each row gets the group whose description is nearest (zero-shot, CLIP, arXiv 2103.00020,
section 3.1), where texts name the groups; where they do not, by the nearest neighbours. For reports, which choose by the data."""

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
    """Whether the values of modality `name` name classes: there are two groups at least, and two rows on average share a value.

    Where every row has a caption of its own, a group's description would contain the row's own caption: that is retrieval.
    """
    labelled = np.array([g is not None for g in e.groups], bool)
    content = e.labels.get(name)
    if content is None or len({g for g in e.groups if g is not None}) < 2:
        return False
    return 2 * len(np.unique(content[labelled])) <= int(labelled.sum())


def classify_by_descriptions(vectors: Mapping[str, Embeddings], pair: tuple[str, str]) -> Classified:
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
    """What can be classified: by descriptions where a text modality names classes, else each modality by its neighbours.

    descriptions: the texts embedded as class names, where the model has a prompt for these (`embed_classes`).
    """
    naming = [m for m in vectors if modalities.get(m).language and names_classes(vectors[m], m)]
    both = {**vectors, **(descriptions or {})}
    if out := [classify_by_descriptions(both, (a, b)) for b in naming for a in vectors if a != b]:
        return out
    for name in vectors:
        with contextlib.suppress(DataError):  # no two groups of two
            out.append(classify_among_themselves(vectors, name))
    return out
