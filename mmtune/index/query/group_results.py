"""Group search results by a column: keep only the best item of each group, e.g. the best photo of each product."""

from collections.abc import Sequence

from mmtune.errors import DataError
from mmtune.index.collection_results import SearchResult
from mmtune.index.query.query import NearestResults, Results

DEPTHS = (4, 20, 100)
"""To get k groups, search for 4 * k items, then for 20 * k, then for 100 * k. It stops there, even with fewer than k groups: a
group with very many items must not cause a scan of the whole index."""


def first_per_group(results: Sequence[SearchResult], column: str, without: object = None) -> Results:
    """Keep the first (best) result for each value of a column, in order. A result without a value is a group of its own.

    column: "group", or a metadata column.
    without: a value whose results are all left out.

    Raises DataError when no result has the column.
    """
    if results and all(r.metadata_value(column) is None for r in results):
        known = sorted({k for r in results for k in ("group", *r.meta) if r.metadata_value(k) is not None})
        raise DataError(f"group_by {column!r}: none of the items found has it; they have {', '.join(known) or 'no columns'}")
    taken: set[str] = set() if without is None else {repr(without)}
    out = []
    for result in results:
        value = result.metadata_value(column)
        if value is None or repr(value) not in taken:
            out.append(result)
            taken.add(repr(value))
    return out


def best_groups(nearest: NearestResults, k: int, column: str, without: object = None) -> Results:
    """Return the best result of each of the k best groups; fewer when the examined items (see DEPTHS) have fewer groups."""
    groups: Results = []
    for depth in DEPTHS:
        results = nearest(k * depth)
        groups = first_per_group(results, column, without)[:k]
        if len(groups) == k or len(results) < k * depth:
            break
    return groups
