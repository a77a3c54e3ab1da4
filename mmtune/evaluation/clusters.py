"""Clusters of rows that belong together, by group or by identical content. Bootstrap intervals resample whole clusters."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmtune.contracts import Embeddings

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

RECORDING_COLUMNS = ("recording", "recording_id", "source_file", "original")
"""Metadata columns whose equal values mean: cut from the same recording or picture."""


class Recordings(NamedTuple):
    """A metadata column that says which rows were cut from the same recording. rows: those with a value; values: distinct ones"""

    column: str
    rows: int
    values: int


def recordings_in(data: "Data") -> Recordings | None:
    """Return the first of RECORDING_COLUMNS of which several rows have the same value; None if there is none."""
    named = set().union(*(data.meta(i) for i in range(min(len(data), 20_000))))  # these rows are enough to find the columns
    for column in RECORDING_COLUMNS:
        values = [str(v) for v in data.column(column) if v not in (None, "")] if column in named else []
        if (distinct := len(set(values))) < len(values):
            return Recordings(column, len(values), distinct)
    return None


def default_cluster(data: "Data", cluster: str | None) -> str | None:
    """Return the metadata column whose values intervals resample: `cluster`, else a recording column of which several
    rows have one value. None: single rows, also if `cluster` is ""."""
    if cluster is not None:
        return cluster or None
    found = recordings_in(data)
    return None if found is None else found.column


def row_clusters(vectors: Mapping[str, Embeddings]) -> dict[str, int]:
    """Return {row id: cluster number}. Rows linked directly or indirectly by a group or identical content are one cluster.

    All directions of a corpus use the same clusters, so that a bootstrap resample draws the same rows in all of them. Clusters
    are numbered by their first row id in sorted order, so the confidence intervals do not depend on the order of the rows.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    node_of: dict[tuple[str, object], int] = {}
    rows: dict[str, int] = {}
    edges: list[tuple[int, int]] = []

    def node(key: tuple[str, object]) -> int:
        return node_of.setdefault(key, len(node_of))

    for name, e in vectors.items():
        group, content = e.labels.get("group"), e.labels.get(name)
        for i, row in enumerate(e.ids):
            rows[row] = this = node(("id", row))
            mark: object = (int(group[i]) or None) if group is not None else e.groups[i]
            if mark is not None:
                edges.append((this, node(("group", mark))))
            if content is not None and content[i]:
                edges.append((this, node((f"content {name}", int(content[i])))))
    ends = np.array(edges, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])), shape=(len(node_of), len(node_of)))
    _, component = connected_components(graph, directed=False)
    number: dict[int, int] = {}
    return {row: number.setdefault(int(component[at]), len(number)) for row, at in sorted(rows.items())}


def clusters_by_value(rows_of_items: Sequence[Iterable[str]], source: Mapping[str, str | None]) -> np.ndarray:
    """Return the cluster number of each item, int64: items whose rows all have the same value are one cluster.

    An item whose rows have several values (a caption that several recordings share) or none is a cluster of its own. The numbers
    depend on `source` alone, so the clusters of several directions fit together.

    rows_of_items: the row ids of each item
    source: {row id: value}, e.g. its recording
    """
    values = sorted({v for v in source.values() if v is not None})
    of_value = {v: i for i, v in enumerate(values)}
    of_row = {row: len(values) + i for i, row in enumerate(sorted(source))}
    out = []
    for rows in rows_of_items:
        ids = list(rows)
        found = {source[r] for r in ids}
        value = next(iter(found))
        out.append(of_row[min(ids)] if len(found) > 1 or value is None else of_value[value])
    return np.array(out, np.int64)
