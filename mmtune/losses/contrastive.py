"""What a contrastive loss is called with, and how its values are averaged over queries (dense here; in tiles in `tiled`)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mmtune.losses.positives_mask import PositivesMask


class RowPairs(NamedTuple):
    """The pairs that stand in one row of the batch, N of them: query [N] and candidate [N] positions, weight [N]."""

    query: Tensor
    candidate: Tensor
    weight: Tensor


@dataclass(slots=True)
class ContrastiveBlock:
    """R queries against all C candidates.

    similarity [R, C] cosines; positives, negatives [R, C] bool, disjoint (a pair in neither is ignored); row_pairs: the pairs
    that stand in one row of the batch; scale, bias: the model's exponentiated logit scale, and its logit bias or None; graded:
    the weights of the row pairs are relevance grades, and only row pairs are positives.
    """

    similarity: Tensor
    positives: Tensor
    negatives: Tensor
    row_pairs: RowPairs
    scale: Tensor
    bias: Tensor | None = None
    graded: bool = False

    def row_pair_weights(self) -> Tensor:
        """[R, C] weights of the row pairs, summed where a pair stands in several rows; 0 elsewhere."""
        query, candidate, weight = self.row_pairs
        weights = torch.zeros_like(self.similarity, requires_grad=False)
        return weights.index_put_((query, candidate), weight.to(weights.dtype), accumulate=True)


PerQueryLoss: TypeAlias = Callable[[ContrastiveBlock], Tensor]
"""ContrastiveBlock -> [R], the loss of each query; queries without a positive may give anything finite (their weight is 0)."""


@dataclass(slots=True)
class GuideVectors:
    """Vectors of a second, frozen model: negatives that it scores above the positive minus `margin` are ignored.

    queries [Q, T], candidates [C, T]. GISTEmbed (Solatorio 2024, arXiv 2402.16829). Of several row pairs of a query, the one
    with the highest score counts.
    """

    queries: Tensor
    candidates: Tensor
    margin: float = 0.0


class MinedNegatives(NamedTuple):
    """Negatives mined for single queries: query [n], candidate [n] positions. Candidates from `first_mined` on are negatives
    in these pairs only."""

    query: Tensor
    candidate: Tensor
    first_mined: int


@dataclass(slots=True)
class QueryCandidateBatch:
    """One direction of a pair of modalities in one batch: the unit vectors of its unique items, and what relates them.

    queries [Q, D], candidates [C, D]; positives: between at least these queries, in order, and these candidates; row_pairs,
    scale, bias as in ContrastiveBlock. Candidates from `queue_start` on come from a queue of earlier batches: they serve as
    negatives only. same_modality: query i is candidate i, and is compared with the others only. graded: the weights of the
    row pairs are relevance grades, so that only row pairs are positives. weigh_items: every query item weighs the same;
    otherwise it weighs as much as its rows.
    """

    queries: Tensor
    candidates: Tensor
    positives: PositivesMask
    row_pairs: RowPairs
    scale: Tensor
    bias: Tensor | None = None
    guide: GuideVectors | None = None
    queue_start: int | None = None
    same_modality: bool = False
    graded: bool = False
    weigh_items: bool = False
    mined: MinedNegatives | None = None


def query_weights(batch: QueryCandidateBatch) -> Tensor:
    """[Q] the weight of each query's loss; 0 for items that are candidates only."""
    query, _, weight = batch.row_pairs
    total = torch.zeros(len(batch.queries), device=batch.queries.device, dtype=torch.float32)
    total.index_add_(0, query, weight.float())
    return (total > 0).float() if batch.weigh_items else total


def contrastive_masks(
    batch: QueryCandidateBatch, start: int, stop: int, related: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(positives, negatives) [stop - start, C] bool of queries [start, stop).

    related: `batch.positives.block(start, stop)` where the caller has it already.
    """
    positives = batch.positives.block(start, stop) if related is None else related
    negatives = ~positives
    if batch.guide is not None:
        negatives &= ~_false_negatives(batch, batch.guide, start, stop)
    if batch.mined is not None:
        query, candidate, first_mined = batch.mined
        inside = (query >= start) & (query < stop)
        mined = torch.zeros_like(negatives)
        mined[query[inside] - start, candidate[inside]] = True
        negatives[:, first_mined : batch.queue_start] &= mined[:, first_mined : batch.queue_start]
    if batch.graded:
        query, candidate, weight = row_pairs_between(batch, start, stop)
        positives = torch.zeros_like(positives).index_put_((query, candidate), weight > 0)
    if batch.queue_start is not None:
        positives = positives.clone()
        positives[:, batch.queue_start :] = False
    if batch.same_modality:
        row = torch.arange(stop - start, device=positives.device)
        positives, negatives = positives.clone(), negatives.clone()
        positives[row, row + start] = False
        negatives[row, row + start] = False
    return positives, negatives


def row_pairs_between(batch: QueryCandidateBatch, start: int, stop: int) -> RowPairs:
    """The row pairs of queries [start, stop), query positions counted from `start`."""
    query, candidate, weight = batch.row_pairs
    if start == 0 and stop == len(batch.queries):
        return batch.row_pairs
    inside = (query >= start) & (query < stop)
    return RowPairs(query[inside] - start, candidate[inside], weight[inside])


def _false_negatives(batch: QueryCandidateBatch, guide: GuideVectors, start: int, stop: int) -> Tensor:
    """[stop - start, C] bool: candidates that the guide scores above the query's best row pair minus the margin."""
    query, candidate, _ = row_pairs_between(batch, start, stop)
    similarity = guide.queries[start:stop] @ guide.candidates.T
    best = torch.full((stop - start,), torch.inf, device=similarity.device, dtype=similarity.dtype)
    best.scatter_reduce_(0, query, similarity[query, candidate], "amax", include_self=False)
    return similarity > (best - guide.margin)[:, None]


def dense_loss(
    batch: QueryCandidateBatch, loss: PerQueryLoss, similarity: Tensor | None = None, related: Tensor | None = None
) -> Tensor:
    """The weighted mean of `loss` over queries, all logits at once. similarity, related: [Q, C] where the caller has them."""
    weight = query_weights(batch)
    positives, negatives = contrastive_masks(batch, 0, len(batch.queries), related)
    weight = weight * positives.any(1)
    similarity = batch.queries @ batch.candidates.T if similarity is None else similarity
    block = ContrastiveBlock(similarity, positives, negatives, batch.row_pairs, batch.scale, batch.bias, batch.graded)
    per_query = loss(block)
    return (per_query * weight).sum() / weight.sum().clamp_min(torch.finfo(torch.float32).tiny)
