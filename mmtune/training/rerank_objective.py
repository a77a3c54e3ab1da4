"""The objective of a cross-encoder: score each positive pair and its negatives, and compare the scores."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtune.contracts import Batch, Pair
from mmtune.losses.rerank_loss import RerankLoss
from mmtune.model.cross_encoder import CrossEncoderModel
from mmtune.model.joint_scorer import ItemStates
from mmtune.runtime.distributed import Processes
from mmtune.training.additional_candidates import mined_negatives
from mmtune.training.objective import Objective, ScaleFunction
from mmtune.training.unique_items import PairItems, pair_items

MINED = 4.0
"""Added to the cosine of mined and given negatives, so that they are chosen before those of the batch."""


class CandidateLists(NamedTuple):
    """The lists that a loss compares: a positive and up to K negatives for each of L positive pairs.

    query: int64 [L], the query of each list
    candidate: int64 [L, 1 + K]; the positive is the first
    valid: bool [L, 1 + K], False for negatives that do not exist
    """

    query: Tensor
    candidate: Tensor
    valid: Tensor


def candidate_lists(
    batch: Batch, direction: Pair, items: PairItems, cosine: Tensor, related: Tensor, negatives: int
) -> CandidateLists:
    """Choose the negatives of every positive pair of a batch, in one direction.

    Mined and given negatives of the query come first, then the candidates of the batch with the highest cosine. Candidates that
    share a row, group or content with the query are no negatives.

    cosine, related: [Q, C], cosines, and the mask of positives
    negatives: K, the largest number of negatives of a pair
    """
    forward = direction == items.pair
    queries, candidates = (items.a, items.b) if forward else (items.b, items.a)
    within = direction[0] == direction[1]
    rank = cosine.detach().clone()
    rank[:, candidates.n_queries :] = -torch.inf  # rows that joined the batch are candidates of their own queries only
    mined = mined_negatives(batch, direction, queries, candidates)
    if mined is not None:
        rank[mined.query, mined.candidate] = cosine.detach()[mined.query, mined.candidate] + MINED
    rank[related] = -torch.inf
    if within:
        rank.fill_diagonal_(-torch.inf)
    if within:
        itself = torch.eye(*related.shape, dtype=torch.bool, device=related.device)
        query, positive = torch.nonzero((related & ~itself)[:, : candidates.n_queries]).unbind(1)
    else:
        row_pairs = items.row_pairs()
        pairs = (row_pairs.query, row_pairs.candidate) if forward else (row_pairs.candidate, row_pairs.query)
        key = torch.unique(pairs[0] * related.shape[1] + pairs[1])  # Apple's GPU has no unique of columns
        query, positive = key // related.shape[1], key % related.shape[1]
    value, chosen = rank.topk(min(negatives, rank.shape[1]), dim=1)
    valid = F.pad(torch.isfinite(value[query]), (1, 0), value=True)
    return CandidateLists(query, torch.cat([positive[:, None], chosen[query]], 1), valid)


class RerankObjective(Objective):
    """Objective of a `CrossEncoderModel`: called with the packed states of a batch's items in place of embeddings.

    model: the cross-encoder; its layers are parameters of the model, not of this module
    loss: the loss of the lists of scores
    negatives: negatives of each positive pair
    processes: each process scores an equal share of the lists of the batch; its loss is that of its share, divided by the number
        of all lists, so that the sum over processes is the loss of the batch
    """

    def __init__(
        self, model: CrossEncoderModel, pairs: Sequence[Pair], loss: RerankLoss, negatives: int, processes: Processes
    ) -> None:
        super().__init__([], pairs, {}, None, {}, {}, processes)
        self.loss, self.negatives = loss, negatives
        self.is_divided = not processes.is_single
        self._unpacked, self._score = model.unpacked, model.score_states

    def forward(self, z: Mapping[str, Tensor], batch: Batch, scale: ScaleFunction) -> tuple[Tensor, dict[str, float]]:
        states = {m: self._unpacked(m, packed) for m, packed in z.items()}
        losses: dict[Pair, Tensor] = {}
        for pair in self.pairs:
            items = pair_items(batch, pair) if set(pair) <= set(states) else None
            if items is None:
                continue
            a, b = pair
            of = {
                a: states[a].at(batch.item_of_row[a][items.a.first_row]),
                b: states[b].at(batch.item_of_row[b][items.b.first_row]),
            }
            related = items.positives.block(0, len(items.a))
            cosine = of[a].embedding @ of[b].embedding.T
            for direction in dict.fromkeys([pair, pair[::-1]]):
                table, mask = (cosine, related) if direction == pair else (cosine.T, related.T)
                queries = (items.a if direction == pair else items.b).n_queries
                lists = candidate_lists(batch, direction, items, table[:queries], mask[:queries], self.negatives)
                if len(lists.query):
                    losses[direction] = self._loss_of(direction, of, lists)
        if not losses:  # no query of this batch has a positive
            return sum((v.sum() for v in z.values()), torch.zeros(())) * 0.0, {}
        value = torch.stack(list(losses.values())).mean()
        named = {f"{a}->{b}": float(v.detach()) for (a, b), v in losses.items()}
        return value, named if len(named) > 1 else {}

    def _loss_of(self, direction: Pair, of: Mapping[str, ItemStates], lists: CandidateLists) -> Tensor:
        """This process's part of the loss of the lists of one direction. of: {modality: states of the pair's items}"""
        count = len(lists.query)
        share = self.processes.local_slice(count)
        lists = CandidateLists(*(x[share] for x in lists))
        queries, candidates = of[direction[0]], of[direction[1]]
        if not len(lists.query):  # fewer lists than processes
            return 0.0 * (queries.embedding.sum() + candidates.embedding.sum())
        index, column = torch.nonzero(lists.valid).unbind(1)
        query, candidate = lists.query[index], lists.candidate[index, column]
        scored = self._score(direction, queries, candidates, query, candidate)
        scores = scored.new_full(lists.valid.shape, -torch.inf)
        loss = self.loss(scores.index_put((index, column), scored), lists.valid)
        return loss if self.processes.is_single else loss * (len(lists.query) / count)
