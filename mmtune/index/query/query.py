"""Run a batch of queries on one version: one batched encoding per modality, one store search per set of equal options.

A single search is a batch of one query.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import MmtuneError
from mmtune.index.collection_results import SearchResult

if TYPE_CHECKING:
    from mmtune.index.open_version import OpenVersion
    from mmtune.index.query.filters import Filter
    from mmtune.index.query.rerank import Rerank
    from mmtune.index.query_content import QueryContent

Results = list[SearchResult]
NearestResults = Callable[[int], Results]
"""A function that returns the k results nearest to the query vector, for a given k."""


@dataclass(frozen=True, slots=True)
class Query:
    """One search: by `content` in `modality`, or by the stored vector of `item` (an id).

    The other fields are the parameters of `Collection.search`.
    """

    modality: str = ""
    content: "QueryContent | None" = None
    item: str | None = None
    k: int = 10
    where: "Filter | None" = None
    target: tuple[str, ...] | None = None
    hybrid: bool = False
    group_by: str | None = None
    rerank: "Rerank | None" = None

    @property
    def nearest_only(self) -> bool:
        """Whether the k nearest items are the final result, without fusion, grouping or re-ranking. Such queries are run in batches."""
        return not self.hybrid and self.group_by is None and self.rerank is None


def search_version(
    version: "OpenVersion", queries: Sequence[Query], refine: Callable[[Query, NearestResults], Results]
) -> list[Results | MmtuneError]:
    """Run queries on a version. Returns, for each query, its results or its error.

    refine: computes the results of a hybrid, grouped or re-ranked query, from the query and a function for nearest-neighbour search.
    """
    vectors = _query_vectors(version, queries)
    out: list[Results | MmtuneError] = [[] for _ in queries]
    batches: dict[tuple[int, bool, str, tuple[str, ...] | None], list[int]] = {}
    for n, (query, vector) in enumerate(zip(queries, vectors, strict=True)):
        if isinstance(vector, MmtuneError):
            out[n] = vector
        elif query.nearest_only:  # the key has repr(where), because Python considers the filters a = 1 and a = true equal
            batches.setdefault((query.k, query.item is None, repr(query.where), query.target), []).append(n)
        else:
            out[n] = _refined(version, query, vector, refine)
    for rows in batches.values():
        first = queries[rows[0]]
        try:
            query_QD = np.stack([v for n in rows if not isinstance(v := vectors[n], MmtuneError)])
            nearest: Sequence[Results | MmtuneError] = _nearest(version, first, query_QD, first.k)
        except MmtuneError as e:
            nearest = [e] * len(rows)
        for n, results in zip(rows, nearest, strict=True):
            out[n] = results if isinstance(results, MmtuneError) else _without_item(queries[n], results, first.k)
    return out


def _refined(
    version: "OpenVersion", query: Query, vector_D: np.ndarray, refine: Callable[[Query, NearestResults], Results]
) -> Results | MmtuneError:
    def nearest(count: int) -> Results:
        return _without_item(query, _nearest(version, query, vector_D[None], count)[0], count)

    try:
        return refine(query, nearest)[: query.k]
    except MmtuneError as e:
        return e


def _nearest(version: "OpenVersion", query: Query, query_QD: np.ndarray, count: int) -> list[Results]:
    """Search for several vectors with the options of `query`. For an item query, get one more result: the item itself."""
    return version.search(query_QD, count + (query.item is not None), query.where, query.target)


def _without_item(query: Query, results: Results, count: int) -> Results:
    return [r for r in results if r.id != query.item][:count]


def _query_vectors(version: "OpenVersion", queries: Sequence[Query]) -> list[np.ndarray | MmtuneError]:
    """Return the vector [D] of each query, or its error."""
    out: dict[int, np.ndarray | MmtuneError] = {}
    for modality in dict.fromkeys(q.modality for q in queries if q.item is None):
        rows = [n for n, q in enumerate(queries) if q.item is None and q.modality == modality]
        vectors: Sequence[np.ndarray | MmtuneError]
        try:
            version.require_tower(modality)
            contents = [c for n in rows if (c := queries[n].content) is not None]
            vectors = list(version.encode_contents(modality, contents))
        except MmtuneError as e:
            vectors = [e] * len(rows)
        out |= zip(rows, vectors, strict=True)
    for n, query in enumerate(queries):
        if query.item is not None:
            try:
                out[n] = version.item_vector(query.item)
            except MmtuneError as e:
                out[n] = e
    return [out[n] for n in range(len(queries))]
