"""The input of contrastive losses, and the weighted mean of a loss over queries from the full logit matrix.

`tiled` computes the same mean without holding the full logit matrix in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from mmtune.losses.positives_mask import PositivesMask


class RowPairs(NamedTuple):
    """The N pairs whose query and candidate belong to the same row of the batch.

    query: position of each pair's query [N]
    candidate: position of each pair's candidate [N]
    weight: weight of each pair in the loss [N]
    """

    query: Tensor
    candidate: Tensor
    weight: Tensor


@dataclass(slots=True)
class ContrastiveBlock:
    """R queries against all C candidates.

    similarity: cosines [R, C]
    positives, negatives: bool masks [R, C] that never overlap; a pair that is in neither is ignored
    row_pairs: the pairs that belong to one row of the batch
    scale: the exponential of the model's learned logit scale
    bias: the model's logit bias, or None
    graded: True: the weights of the row pairs are relevance grades, and only row pairs are positives
    """

    similarity: Tensor
    positives: Tensor
    negatives: Tensor
    row_pairs: RowPairs
    scale: Tensor
    bias: Tensor | None = None
    graded: bool = False

    def row_pair_weights(self) -> Tensor:
        """Weights of the row pairs as a matrix [R, C], summed over rows that hold the same pair; 0 for all other pairs."""
        query, candidate, weight = self.row_pairs
        weights = torch.zeros_like(self.similarity, requires_grad=False)
        return weights.index_put_((query, candidate), weight.to(weights.dtype), accumulate=True)


PerQueryLoss: TypeAlias = Callable[[ContrastiveBlock], Tensor]
"""Maps a ContrastiveBlock to the loss of each query [R].

For a query without a positive, any finite value may be returned, because its weight in the mean is 0.
"""


@dataclass(slots=True)
class GuideVectors:
    """Embeddings by a second, frozen model (a guide) that detects false negatives: GISTEmbed (Solatorio 2024, arXiv 2402.16829).

    A negative is ignored if the guide scores it above the query's own positive minus `margin`. If a query has several row
    pairs, the one that the guide scores highest is compared.

    queries: guide embeddings of the queries [Q, T]
    candidates: guide embeddings of the candidates [C, T]
    """

    queries: Tensor
    candidates: Tensor
    margin: float = 0.0


class MinedNegatives(NamedTuple):
    """Hard negatives, each mined for one query.

    query: position of each query [n]
    candidate: position of its negative [n]
    first_mined: candidates from this position on were added as mined negatives; each counts only for the queries paired with
        it here
    """

    query: Tensor
    candidate: Tensor
    first_mined: int


@dataclass(slots=True)
class QueryCandidateBatch:
    """One direction (query modality to candidate modality) of one batch: embeddings of the unique items, and their relations.

    queries: L2-normalised embeddings [Q, D]
    candidates: L2-normalised embeddings [C, D]
    positives: the positive pairs; it may cover more queries than these, and the first Q are these, in this order
    row_pairs, scale, bias, graded: as in `ContrastiveBlock`
    guide: embeddings by a guide model that mark false negatives, or None
    queue_start: candidates from this position on come from a queue of earlier batches and are used as negatives only
    same_modality: True: query i and candidate i are the same item, so that this pair is ignored
    weigh_items: True: every query item has weight 1. False: its weight is the sum of its row pairs' weights
    mined: hard negatives that were mined for single queries, or None
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
    """Weight of each query's loss [Q]; 0 for items that are only used as candidates."""
    query, _, weight = batch.row_pairs
    total = torch.zeros(len(batch.queries), device=batch.queries.device, dtype=torch.float32)
    total.index_add_(0, query, weight.float())
    return (total > 0).float() if batch.weigh_items else total


def contrastive_masks(
    batch: QueryCandidateBatch, start: int, stop: int, related: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the bool masks (positives, negatives) of queries start to stop (exclusive), each of shape [stop - start, C].

    related: the value of `batch.positives.block(start, stop)` if the caller has already computed it.
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
    """Return the row pairs of queries start to stop (exclusive). Query positions in the result count from `start`."""
    query, candidate, weight = batch.row_pairs
    if start == 0 and stop == len(batch.queries):
        return batch.row_pairs
    inside = (query >= start) & (query < stop)
    return RowPairs(query[inside] - start, candidate[inside], weight[inside])


def _false_negatives(batch: QueryCandidateBatch, guide: GuideVectors, start: int, stop: int) -> Tensor:
    """Mask [stop - start, C] of candidates that the guide scores above the query's best row pair minus the margin."""
    query, candidate, _ = row_pairs_between(batch, start, stop)
    similarity = guide.queries[start:stop] @ guide.candidates.T
    best = torch.full((stop - start,), torch.inf, device=similarity.device, dtype=similarity.dtype)
    best.scatter_reduce_(0, query, similarity[query, candidate], "amax", include_self=False)
    return similarity > (best - guide.margin)[:, None]


def dense_loss(
    batch: QueryCandidateBatch, loss: PerQueryLoss, similarity: Tensor | None = None, related: Tensor | None = None
) -> Tensor:
    """Return the weighted mean of `loss` over queries, computed from the full matrix of logits.

    similarity: the cosines [Q, C], if the caller has already computed them
    related: the mask of positives [Q, C] before exclusions, if the caller has already computed it
    """
    weight = query_weights(batch)
    positives, negatives = contrastive_masks(batch, 0, len(batch.queries), related)
    weight = weight * positives.any(1)
    similarity = batch.queries @ batch.candidates.T if similarity is None else similarity
    block = ContrastiveBlock(similarity, positives, negatives, batch.row_pairs, batch.scale, batch.bias, batch.graded)
    per_query = loss(block)
    return (per_query * weight).sum() / weight.sum().clamp_min(torch.finfo(torch.float32).tiny)
