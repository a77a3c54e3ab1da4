"""Results grouped by a column: of several items of one group (the photos of a product), the best one stands for the group."""

from collections.abc import Sequence

from mmtune.errors import DataError
from mmtune.index.collection_results import SearchResult
from mmtune.index.query.query import NearestResults, Results

DEPTHS = (4, 20, 100)
"""Items looked at per group wanted, until there are enough groups: a product with a thousand photos must not cost a scan."""


def first_per_group(results: Sequence[SearchResult], column: str, without: object = None) -> Results:
    """The best result of every value of `column` ("group" or metadata), in order; results without a value are groups of their
    own.

    without: a value whose results are left out. Raises DataError when no result has the column.
    """
    if results and all(r.metadata_value(column) is None for r in results):
        known = sorted({k for r in results for k in ("group", *r.meta) if r.metadata_value(k) is not None})
        raise DataError(
            f"group_by {column!r}: none of the items found has it; they have {', '.join(known) or 'nothing of the kind'}"
        )
    taken: set[str] = set() if without is None else {repr(without)}
    out = []
    for result in results:
        value = result.metadata_value(column)
        if value is None or repr(value) not in taken:
            out.append(result)
            taken.add(repr(value))
    return out


def best_groups(nearest: NearestResults, k: int, column: str, without: object = None) -> Results:
    """The k best groups; fewer when the items that are looked at (see DEPTHS) belong to fewer."""
    groups: Results = []
    for depth in DEPTHS:
        results = nearest(k * depth)
        groups = first_per_group(results, column, without)[:k]
        if len(groups) == k or len(results) < k * depth:
            break
    return groups
