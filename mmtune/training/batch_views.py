"""A batch and its vectors -> what the losses see: unique items of two modalities, what relates them, their own pairs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtune.contracts import Batch, Pair
from mmtune.errors import DataError, RecipeError
from mmtune.losses.relation import Relation


@dataclass(slots=True)
class Items:
    """The unique items of one modality that take part in a pair, N of them.

    row [N] a batch row that holds each; of_row [B] row -> item or -1. The first `n_queries` are queries, the rest candidates only.
    """

    row: Tensor
    of_row: Tensor
    n_queries: int

    def labels(self, batch: Batch, kinds: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """kind -> (item, label): an item carries the labels of all its rows."""
        rows = torch.nonzero(self.of_row >= 0).squeeze(1)
        return {k: (self.of_row[rows], batch.labels[k][rows]) for k in kinds}


@dataclass(slots=True)
class PairItems:
    """Both sides of a pair in one batch: queries and candidates in either direction, and the rows that own a pair."""

    pair: Pair
    a: Items
    b: Items
    rows: Tensor
    relation: Relation

    def own(self, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(item of a, item of b, weight) of each row that has both and asks."""
        ones = torch.ones(len(self.rows), device=self.rows.device) if weight is None else weight
        return self.a.of_row[self.rows], self.b.of_row[self.rows], ones


def unique_items(batch: Batch, modality: str, rows: Tensor, asking: Tensor) -> Items:
    """Items of `modality` among the marked rows [B]; those of `asking` rows [B] come first.

    Equal content is one item, also when it came in two slots.
    """
    slot, content = batch.item_of_row[modality], batch.labels[modality]
    key = torch.where(content != 0, content, -1 - slot)
    index = torch.nonzero(rows).squeeze(1)
    _, inverse = torch.unique(key[index], return_inverse=True)
    count = int(inverse.max()) + 1 if len(index) else 0
    first = torch.full((count,), len(slot), device=slot.device, dtype=torch.int64)
    first.scatter_reduce_(0, inverse, index, "amin")
    asks = torch.zeros(count, dtype=torch.bool, device=slot.device)
    asks[inverse[asking[index]]] = True
    order = torch.argsort((~asks).to(torch.uint8), stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(count, device=slot.device)
    of_row = torch.full_like(slot, -1)
    of_row[index] = place[inverse]
    return Items(first[order], of_row, int(asks.sum()))


def kinds(batch: Batch, *modality: str) -> list[str]:
    """The labels that say which things of these modalities are the same."""
    return [k for k in dict.fromkeys(("id", "group", *modality)) if k in batch.labels]


def pair_items(batch: Batch, pair: Pair) -> PairItems | None:
    """The pair's items, or None when no row that asks has both. Rows that only serve as candidates need one of them."""
    a, b = pair
    has_a, has_b = batch.item_of_row[a] >= 0, batch.item_of_row[b] >= 0
    both = has_a & has_b
    asks = both & batch.is_query
    rows = torch.nonzero(asks).squeeze(1)
    if not len(rows):
        return None
    extra = ~batch.is_query
    items_a = unique_items(batch, a, has_a & (both | extra), asks)
    items_b = items_a if a == b else unique_items(batch, b, has_b & (both | extra), asks)
    shared = kinds(batch, a, b)
    shape = (len(items_a.row), len(items_b.row))
    relation = Relation(items_a.labels(batch, shared), items_b.labels(batch, shared), shape)
    return PairItems(pair, items_a, items_b, rows, relation)


def column(batch: Batch, name: str, key: str, rows: Tensor, low: float | None = None, high: float | None = None) -> Tensor:
    """A numeric column at `rows`. Raises RecipeError when the data lack it, DataError for NaN or a value out of range."""
    if name not in batch.columns:
        known = f"; the batch has: {', '.join(batch.columns)}" if batch.columns else ""
        raise RecipeError(f"{key}: the data have no numeric column {name!r}{known}")
    value = batch.columns[name][rows].float()
    check_values(value, lambda at: batch.ids[int(rows[at])], name, key, low, high)
    return value


def check_values(
    value: Tensor, row_id: Callable[[int], str], name: str, key: str, low: float | None = None, high: float | None = None
) -> None:
    """Raise DataError naming key, column and row (`row_id` of a position) for NaN or a value out of range."""
    wrong = ~torch.isfinite(value)
    says = "is not a number"
    if not bool(wrong.any()) and low is not None:
        wrong, says = value < low, f"is below {low:g}"
    if not bool(wrong.any()) and high is not None:
        wrong, says = value > high, f"is above {high:g}"
    if bool(wrong.any()):
        at = int(torch.nonzero(wrong)[0])
        raise DataError(f"{key}: column {name!r} of row {row_id(at)!r} is {float(value[at]):g}, which {says}")
