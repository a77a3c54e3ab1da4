"""Searches of one version, many at once: one pass of a tower for all values of a modality, one pass over the stores for all who
ask alike. A search alone is a batch of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.errors import MmtuneError

if TYPE_CHECKING:
    from mmtune.index.open_version import OpenVersion, QueryContent
    from mmtune.index.query.filters import Filter

Results = list[dict[str, Any]]
Nearest = Callable[[int], Results]
"""count -> as many of the best results, by vectors."""


@dataclass(frozen=True, slots=True)
class Query:
    """One search: `content` of the modality `name`, or the `item` whose own vector asks. For the rest see
    `Collection.search`."""

    name: str = ""
    content: "QueryContent | None" = None
    item: str | None = None
    k: int = 10
    where: "Filter | None" = None
    target: tuple[str, ...] | None = None
    hybrid: bool = False
    per: str | None = None

    @property
    def alone(self) -> bool:
        """Whether more has to be done than to look for the nearest k."""
        return self.hybrid or self.per is not None


def ask_all(
    opened: "OpenVersion", asks: Sequence[Query], alone: Callable[[Query, Nearest], Results]
) -> list[Results | MmtuneError]:
    """The results of each ask, or its own error, in order. alone: what makes the results of an ask that is so."""
    vectors = _vectors(opened, asks)
    out: list[Any] = list(vectors)
    alike: dict[Any, list[int]] = {}
    for n, (ask, vector) in enumerate(zip(asks, vectors, strict=True)):
        if isinstance(vector, MmtuneError):
            continue
        if ask.alone:
            out[n] = _alone(opened, ask, vector, alone)
        else:  # repr: to Python the filters `a = 1` and `a = true` are equal
            alike.setdefault((ask.k, ask.item is None, repr(ask.where), ask.target), []).append(n)
    for rows in alike.values():
        try:
            found: Sequence[Any] = _nearest(opened, asks[rows[0]], np.stack([vectors[n] for n in rows]), asks[rows[0]].k)
        except MmtuneError as e:
            found = [e] * len(rows)
        for n, results in zip(rows, found, strict=True):
            out[n] = results if isinstance(results, MmtuneError) else _others(asks[n], results, asks[n].k)
    return out


def _alone(
    opened: "OpenVersion", ask: Query, vector: np.ndarray, alone: Callable[[Query, Nearest], Results]
) -> Results | MmtuneError:
    try:
        return alone(ask, lambda count: _others(ask, _nearest(opened, ask, vector[None], count)[0], count))[: ask.k]
    except MmtuneError as e:
        return e


def _nearest(opened: "OpenVersion", ask: Query, query_QD: np.ndarray, count: int) -> list[Results]:
    """Of several who ask alike; one more where an item will find itself."""
    return opened.search(query_QD, count + (ask.item is not None), ask.where, ask.target)


def _others(ask: Query, results: Results, count: int) -> Results:
    return [r for r in results if r["id"] != ask.item][:count]


def _vectors(opened: "OpenVersion", asks: Sequence[Query]) -> list[Any]:
    """The vector [D] of each, or its error."""
    out: list[Any] = [None] * len(asks)
    for name in dict.fromkeys(a.name for a in asks if a.item is None):
        rows = [n for n, a in enumerate(asks) if a.item is None and a.name == name]
        made: Any
        try:
            opened.require(name)
            made = opened.vectors_of(name, [a.content for n in rows if (a := asks[n]).content is not None])
        except MmtuneError as e:
            made = [e] * len(rows)
        for n, vector in zip(rows, made, strict=True):
            out[n] = vector
    for n, ask in enumerate(asks):
        if ask.item is not None:
            try:
                out[n] = opened.vector(ask.item)[1]
            except MmtuneError as e:
                out[n] = e
    return out
