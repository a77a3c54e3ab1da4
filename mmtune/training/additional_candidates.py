"""Candidates beyond a batch's own pairs: mined hard negatives, and the vectors of the cross-batch memory queue."""

import torch

from mmtune.contracts import Batch, Pair, direction
from mmtune.losses.contrastive import MinedNegatives
from mmtune.losses.positives_mask import PositivesMask
from mmtune.training.large_batch.cross_batch_memory import QueuedItems
from mmtune.training.unique_items import UniqueItems, label_kinds


def mined_negatives(
    batch: Batch, query_candidate: Pair, queries: UniqueItems, candidates: UniqueItems
) -> MinedNegatives | None:
    """Convert the batch's mined rows for this direction to items. Returns None if no direction has mined rows."""
    if not batch.hard_negatives:
        return None
    query_row, negative_row = batch.hard_negatives.get(direction(*query_candidate), batch.index.new_zeros(2, 0))
    query, candidate = queries.item_of_row[query_row], candidates.item_of_row[negative_row]
    known = (query >= 0) & (candidate >= 0)
    return MinedNegatives(query[known], candidate[known], candidates.n_queries)


def with_queue(positives: PositivesMask, queued: QueuedItems, batch: Batch, query_candidate: Pair) -> PositivesMask:
    """Return the mask of positives, extended by the queued items as additional candidates."""
    query_labels, candidate_labels = positives.labels
    n = positives.shape[1]
    joined = {}
    for kind in label_kinds(batch, *query_candidate):
        item, label = candidate_labels[kind]
        queued_item, queued_label = queued.labels.get(kind, (item[:0], label[:0]))
        joined[kind] = (torch.cat([item, queued_item + n]), torch.cat([label, queued_label]))
    return PositivesMask(query_labels, joined, (positives.shape[0], n + len(queued)))
