"""One answer a group: of several items of one thing (the photos of a product), the one that was found best stands for all."""

from collections.abc import Callable
from typing import Any

from mmtune.errors import DataError

Line = dict[str, Any]
Search = Callable[[int], list[Line]]
"""depth -> the best results, at most so many."""

DEPTHS = (4, 20, 100)
"""Items looked at for each answer wanted, until there are enough: a thing with a thousand photos must not cost a scan."""


def value_of(line: Line, per: str) -> Any:
    """What a result has in the column `per`: its group, or metadata; None for nothing."""
    found = line["group"] if per == "group" else line["meta"].get(per)
    return None if found == "" else found


def one_each(lines: list[Line], per: str, without: Any = None) -> list[Line]:
    """The best of every value of `per`, in their order; results without a value stand for themselves. without: a value whose
    results are left out. Raises DataError when no result has such a column."""
    if lines and all(value_of(line, per) is None for line in lines):
        known = sorted({k for line in lines for k in ("group", *line["meta"]) if value_of(line, k) is not None})
        raise DataError(f"per {per!r}: none of the items found has it; they have {', '.join(known) or 'nothing of the kind'}")
    taken: set[Any] = set() if without is None else {repr(without)}
    out = []
    for line in lines:
        value = value_of(line, per)
        if value is None or repr(value) not in taken:
            out.append(line)
            taken.add(repr(value))
    return out


def best_of_each(search: Search, k: int, per: str, without: Any = None) -> list[Line]:
    """The k best things; fewer when the items that are looked at (see DEPTHS) hold no more."""
    found: list[Line] = []
    for share in DEPTHS:
        lines = search(k * share)
        found = one_each(lines, per, without)[:k]
        if len(found) == k or len(lines) < k * share:
            break
    return found
