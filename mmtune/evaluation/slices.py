"""Slices: named sets of rows. A query belongs to a slice when one of its rows does; candidates are always the whole corpus."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune.errors import RecipeError
from mmtune.evaluation.result import Direction
from mmtune.modalities.quality import size

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

Slices = Mapping[str, "frozenset[str] | set[str]"]
"""Slice name -> row ids."""

MANY = 12  # a numeric column with more distinct values than this is cut into quarters


@dataclass
class Slice:
    """Means over the queries of one slice in one direction."""

    queries: int
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        return {"queries": self.queries, "metrics": self.metrics}


def by_values(name: str, ids: Iterable[str], values: Iterable[Any]) -> dict[str, frozenset[str]]:
    """One slice a value, "name=value"; numbers with many values are cut at their quartiles; None and "" are in no slice."""
    pairs = [(i, v) for i, v in zip(ids, values, strict=True) if v is not None and v != "" and v == v]
    if not pairs:
        raise RecipeError(f"slice {name!r}: no row has a value for it")
    numbers = _numbers([v for _, v in pairs])
    if numbers is not None and len(set(numbers.tolist())) > MANY:
        edges = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1])
        at = np.searchsorted(edges[1:4], numbers, "left")
        labels = [f"{name}={edges[k]:g}..{edges[k + 1]:g}" for k in range(4)]
        found = [labels[k] for k in at]
    else:
        found = [f"{name}={int(v) if isinstance(v, float) and v.is_integer() else v}" for _, v in pairs]
    out: dict[str, set[str]] = {}
    for (i, _), label in zip(pairs, found, strict=True):
        out.setdefault(label, set()).add(i)
    return {k: frozenset(out[k]) for k in sorted(out)}


def metadata_slices(data: "Data", wanted: Iterable[str]) -> dict[str, frozenset[str]]:
    """Slices of DATA: a metadata column by its name, or "size:MODALITY" for quarters by length, duration or area."""
    out: dict[str, frozenset[str]] = {}
    for name in wanted:
        kind, _, modality = name.partition(":")
        if kind == "size" and modality:
            if modality not in data.present:
                raise RecipeError(f"slice {name!r}: the data have {', '.join(data.modalities)}")
            rows = np.flatnonzero(data.present[modality]).tolist()
            sizes = [size(modality, data.read(i, modality)) for i in rows]
            out |= by_values(f"{modality} {sizes[0][1]}", [data.ids[i] for i in rows], [s for s, _ in sizes])
        else:
            out |= by_values(name, data.ids, data.column(name))
    return out


def _numbers(values: list[Any]) -> "np.ndarray | None":
    try:
        return np.array([float(v) for v in values])
    except (TypeError, ValueError):
        return None


def in_slice(found: Direction, rows: "frozenset[str] | set[str]") -> np.ndarray:
    """[queries] bool: the query is in the slice."""
    return np.array([not rows.isdisjoint(r) for r in found.query_rows], bool)


def slice_direction(found: Direction, slices: Slices, metric: str) -> dict[str, Slice]:
    """Slices that hold a query of the direction, the worst by `metric` first."""
    if found.values is None:
        raise RecipeError("slices need the values of every query: evaluate with per_query=True")
    out = {}
    for name, rows in slices.items():
        mask = in_slice(found, rows)
        if mask.any():
            out[name] = Slice(int(mask.sum()), {m: float(v[mask].mean()) for m, v in found.values.items()})
    return dict(sorted(out.items(), key=lambda x: (x[1].metrics[metric], x[0])))
