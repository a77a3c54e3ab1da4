"""Group pooling: merge several images or sounds of one thing, e.g. photos of one product, into one item per group."""

from collections.abc import Mapping

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.errors import RecipeError
from mmtune.relevance.items import names_to_labels
from mmtune.relevance.judgments import Qrels
from mmtune.search.vectors import normalize_rows

POOLINGS = ("mean",)


def pool_groups(vectors: Mapping[str, Embeddings], pooling: str, qrels: Qrels | None = None) -> dict[str, Embeddings]:
    """Merge the rows of each group into one item, whose vector is the mean of their vectors, L2-normalised again.

    The item gets the smallest row id of the group. Text modalities and rows without a group stay unchanged. Rows with identical
    content count once in the mean.

    Raises RecipeError for an unknown `pooling`, and if `qrels` is given, because judgments are about single rows.
    """
    if pooling not in POOLINGS:
        raise RecipeError(f"group_pooling: unknown value {pooling!r}; there is: {', '.join(POOLINGS)}")
    if qrels is not None:
        raise RecipeError("group_pooling cannot be used with judgments, which are about single rows")
    return {m: e if modalities.get(m).language else pool_modality(m, e) for m, e in vectors.items()}


def pool_modality(name: str, e: Embeddings) -> Embeddings:
    """Merge the rows of each group of modality `name` into one row."""
    members: dict[str, list[int]] = {}
    for i, (row, group) in enumerate(zip(e.ids, e.groups, strict=True)):
        members.setdefault(f"group {group}" if group is not None else f"row {row}", []).append(i)
    content = e.labels.get(name)
    first_rows, means, query_means = [], [], []
    for unsorted in members.values():
        at = sorted(unsorted, key=e.ids.__getitem__)
        distinct = {(int(content[i]) or -1 - i) if content is not None else -1 - i: i for i in reversed(at)}
        once = list(distinct.values())
        first_rows.append(at[0])
        means.append(e.vectors[once].mean(0, dtype=np.float64))
        query_means.append(e.query_vectors[once].mean(0, dtype=np.float64))
    rows = np.array(first_rows, np.int64)
    labels = {k: np.asarray(v)[rows] for k, v in e.labels.items()}
    labels[name] = names_to_labels(list(members))  # the content label of an item stands for its whole group
    queries = None if e.queries is None else normalize_rows(np.stack(query_means).astype(np.float32), name)
    pooled = normalize_rows(np.stack(means).astype(np.float32), name) if means else e.vectors
    return Embeddings([e.ids[i] for i in rows], [e.groups[i] for i in rows], labels, pooled, e.fingerprint, queries)
