"""Several signals of one thing (photos of a product from all sides) as one item a group: the mean of their unit vectors."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.errors import RecipeError
from mmtune.relevance.items import names_to_labels
from mmtune.search.vectors import unit

HOW = ("mean",)


def pool_views(vectors: Mapping[str, Embeddings], how: str, qrels: Any = None) -> dict[str, Embeddings]:
    """Signals of one group become one item with the group's smallest row id; words, and rows without a group, stay as they are.

    The mean is over distinct content: a photo that is there twice counts once. Raises RecipeError for another `how`, and with
    judgments, which speak of single rows.
    """
    if how not in HOW:
        raise RecipeError(f"views: {how!r}; there is: {', '.join(HOW)}")
    if qrels is not None:
        raise RecipeError("views: judgments are about single rows; use the one or the other")
    return {m: e if modalities.get(m).language else pooled(m, e) for m, e in vectors.items()}


def pooled(name: str, e: Embeddings) -> Embeddings:
    """One row a group."""
    members: dict[str, list[int]] = {}
    for i, (row, group) in enumerate(zip(e.ids, e.groups, strict=True)):
        members.setdefault(f"group {group}" if group is not None else f"row {row}", []).append(i)
    content = e.labels.get(name)
    heads, out, asking = [], [], []
    for at in members.values():
        at = sorted(at, key=e.ids.__getitem__)
        once = list({(int(content[i]) or -1 - i) if content is not None else -1 - i: i for i in reversed(at)}.values())
        heads.append(at[0])
        out.append(e.vectors[once].mean(0, dtype=np.float64))
        asking.append(e.query_vectors[once].mean(0, dtype=np.float64))
    rows = np.array(heads, np.int64)
    labels = {k: np.asarray(v)[rows] for k, v in e.labels.items()}
    labels[name] = names_to_labels(list(members))  # its content is the whole group
    queries = None if e.queries is None else unit(np.stack(asking).astype(np.float32), name)
    z = unit(np.stack(out).astype(np.float32), name) if out else e.vectors
    return Embeddings([e.ids[i] for i in heads], [e.groups[i] for i in heads], labels, z, e.fingerprint, queries)
