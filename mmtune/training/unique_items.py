"""The unique items of a batch: the distinct contents of each modality, the rows that contain them, and the pairs of the rows.

A row is one training example. An item is one distinct content of one modality; for example, a caption that occurs in ten rows
is one item. Losses compare items; the labels and weights of items come from their rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmtune.contracts import Batch, Pair
from mmtune.losses.contrastive import RowPairs
from mmtune.losses.positives_mask import PositivesMask


@dataclass(slots=True)
class UniqueItems:
    """The N unique items of one modality that take part in a pair.

    first_row: number of the first batch row that contains each item [N]
    item_of_row: for each batch row [B], the number of its item, or -1
    n_queries: the first n_queries items are queries; all others are only candidates
    """

    first_row: Tensor
    item_of_row: Tensor
    n_queries: int

    def __len__(self) -> int:
        return len(self.first_row)

    def labels(self, batch: Batch, kinds: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """{kind of label: (item [n], label [n])}. An item has the labels of all its rows."""
        rows = torch.nonzero(self.item_of_row >= 0).squeeze(1)
        return {k: (self.item_of_row[rows], batch.labels[k][rows]) for k in kinds}


@dataclass(slots=True)
class PairItems:
    """The items of a pair of modalities (a, b) in one batch.

    a, b: the items of each modality
    rows: numbers of the query rows that have both modalities [N]
    positives: the positive pairs between items of a and items of b
    """

    pair: Pair
    a: UniqueItems
    b: UniqueItems
    rows: Tensor
    positives: PositivesMask

    def row_pairs(self, weight: Tensor | None = None) -> RowPairs:
        """The pairs (item of a, item of b, weight) that the query rows form. weight: [N], or None for 1."""
        ones = torch.ones(len(self.rows), device=self.rows.device) if weight is None else weight
        return RowPairs(self.a.item_of_row[self.rows], self.b.item_of_row[self.rows], ones)


def unique_items(batch: Batch, modality: str, rows: Tensor, query_rows: Tensor) -> UniqueItems:
    """Return the items of `modality` in the rows marked by `rows` (bool [B]), items of `query_rows` (bool [B]) first.

    Inputs with equal content become one item, even if the batch contains the input several times.
    """
    slot, content = batch.item_of_row[modality], batch.labels[modality]
    key = torch.where(content != 0, content, -1 - slot)  # content 0 means unknown: such an input is an item of its own
    index = torch.nonzero(rows).squeeze(1)
    _, inverse = torch.unique(key[index], return_inverse=True)
    count = int(inverse.max()) + 1 if len(index) else 0
    first = torch.full((count,), len(slot), device=slot.device, dtype=torch.int64)
    first.scatter_reduce_(0, inverse, index, "amin")
    is_query = torch.zeros(count, dtype=torch.bool, device=slot.device)
    is_query[inverse[query_rows[index]]] = True
    order = torch.argsort((~is_query).to(torch.uint8), stable=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(count, device=slot.device)
    item_of_row = torch.full_like(slot, -1)
    item_of_row[index] = position[inverse]
    return UniqueItems(first[order], item_of_row, int(is_query.sum()))


def label_kinds(batch: Batch, *modalities: str) -> list[str]:
    """Kinds of labels that make two items of these modalities a positive pair: id, group, and the contents."""
    return [k for k in dict.fromkeys(("id", "group", *modalities)) if k in batch.labels]


def pair_items(batch: Batch, pair: Pair) -> PairItems | None:
    """Return the items of `pair`, or None if no query row has both modalities.

    Rows that only provide candidates need only one of the modalities.
    """
    a, b = pair
    has_a, has_b = batch.item_of_row[a] >= 0, batch.item_of_row[b] >= 0
    both = has_a & has_b
    query_rows = both & batch.is_query
    rows = torch.nonzero(query_rows).squeeze(1)
    if not len(rows):
        return None
    candidate_only = ~batch.is_query
    items_a = unique_items(batch, a, has_a & (both | candidate_only), query_rows)
    items_b = items_a if a == b else unique_items(batch, b, has_b & (both | candidate_only), query_rows)
    kinds = label_kinds(batch, a, b)
    positives = PositivesMask(items_a.labels(batch, kinds), items_b.labels(batch, kinds), (len(items_a), len(items_b)))
    return PairItems(pair, items_a, items_b, rows, positives)
