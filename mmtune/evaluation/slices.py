"""Slices: named sets of rows. A query is in a slice if one of its rows is; its candidates are always the whole corpus."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError
from mmtune.evaluation.result import Direction
from mmtune.modalities.quality import size

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

Slices = Mapping[str, "frozenset[str] | set[str]"]
"""{slice name: row ids}"""

MAX_DISTINCT = 12  # a numeric column with more distinct values is split at its quartiles


@dataclass
class Slice:
    """Mean metrics over the queries of one slice in one direction."""

    queries: int
    metrics: dict[str, float]

    def to_dict(self) -> JsonObject:
        return {"queries": self.queries, "metrics": self.metrics}


def slices_by_value(name: str, ids: Iterable[str], values: Iterable[object]) -> dict[str, frozenset[str]]:
    """Make one slice per value, called "name=value". Values None and "" are in no slice.

    Numbers with more than MAX_DISTINCT distinct values are split at their quartiles instead.
    """
    pairs = [(i, v) for i, v in zip(ids, values, strict=True) if v is not None and v != "" and v == v]
    if not pairs:
        raise RecipeError(f"slice {name!r}: no row has a value for it")
    numbers = _numbers([v for _, v in pairs])
    if numbers is not None and len(set(numbers.tolist())) > MAX_DISTINCT:
        edges = np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1])
        quarter = np.searchsorted(edges[1:4], numbers, "left")
        quarter_labels = [f"{name}={edges[k]:g}..{edges[k + 1]:g}" for k in range(4)]
        labels = [quarter_labels[k] for k in quarter]
    else:
        labels = [f"{name}={int(v) if isinstance(v, float) and v.is_integer() else v}" for _, v in pairs]
    rows_of: dict[str, set[str]] = {}
    for (i, _), label in zip(pairs, labels, strict=True):
        rows_of.setdefault(label, set()).add(i)
    return {k: frozenset(rows_of[k]) for k in sorted(rows_of)}


def metadata_slices(data: "Data", names: Iterable[str]) -> dict[str, frozenset[str]]:
    """Make slices of DATA from `names`: metadata columns, or "size:MODALITY" for quartiles of text length, duration or area."""
    out: dict[str, frozenset[str]] = {}
    for name in names:
        kind, _, modality = name.partition(":")
        if kind == "size" and modality:
            if modality not in data.present:
                raise RecipeError(f"slice {name!r}: the data have no such modality; they have {', '.join(data.modalities)}")
            rows = np.flatnonzero(data.present[modality]).tolist()
            sizes = [size(modality, data.read(i, modality)) for i in rows]
            out |= slices_by_value(f"{modality} {sizes[0][1]}", [data.ids[i] for i in rows], [s for s, _ in sizes])
        else:
            out |= slices_by_value(name, data.ids, data.column(name))
    return out


def _numbers(values: Sequence[object]) -> "np.ndarray | None":
    """Return the values as float64, or None if one of them is not a number."""
    try:
        return np.array([float(v) for v in values])  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def in_slice(direction: Direction, rows: "frozenset[str] | set[str]") -> np.ndarray:
    """bool [queries]: whether the query has a row in the slice `rows`."""
    return np.array([not rows.isdisjoint(r) for r in direction.query_rows], bool)


def slice_direction(direction: Direction, slices: Slices, metric: str) -> dict[str, Slice]:
    """Compute the metrics of each slice that has a query in this direction, sorted by `metric`, worst first."""
    if direction.values is None:
        raise RecipeError("slices need the values of every query; evaluate with per_query=True")
    out = {}
    for name, rows in slices.items():
        mask = in_slice(direction, rows)
        if mask.any():
            out[name] = Slice(int(mask.sum()), {m: float(v[mask].mean()) for m, v in direction.values.items()})
    return dict(sorted(out.items(), key=lambda x: (x[1].metrics[metric], x[0])))
