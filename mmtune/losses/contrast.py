"""What every contrastive loss is given, and how its value is gathered over queries: dense here, in tiles in `tiled`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmtune.losses.relation import Relation


@dataclass(slots=True)
class Block:
    """R queries against all C candidates.

    sim [R, C] cosines; pos, neg [R, C] bool, disjoint (a pair in neither is left out); own: (query [N], candidate [N],
    weight [N]) the pairs that stand in one row of the batch, a weight each; scale, bias: of the model, exponentiated.
    """

    sim: Tensor
    pos: Tensor
    neg: Tensor
    own: tuple[Tensor, Tensor, Tensor]
    scale: Tensor
    bias: Tensor | None = None

    def own_weights(self) -> Tensor:
        """[R, C] the own pairs' weights, added up where a pair stands in several rows."""
        i, j, w = self.own
        return torch.zeros_like(self.sim, requires_grad=False).index_put_((i, j), w.to(self.sim.dtype), accumulate=True)


RowLoss = Callable[[Block], Tensor]
"""Block -> [R], the loss of each query; queries without a positive may give anything finite (they weigh nothing)."""


@dataclass(slots=True)
class Guide:
    """Vectors of a second, frozen model: negatives it scores above the positive minus `margin` are left out.

    GISTEmbed (Solatorio 2024, arXiv 2402.16829). With several own pairs of a query, its best-scored one counts.
    """

    q: Tensor
    c: Tensor
    margin: float = 0.0


@dataclass(slots=True)
class View:
    """A pair of modalities in one batch, seen in one direction: unit vectors of unique items and what relates them.

    q [Q, D] queries, c [C, D] candidates; relation between at least these queries, in order, and these candidates;
    own (query, candidate, weight) as in Block; scale, bias scalars or None.
    Candidates from `stale` on come from a memory queue: they serve as negatives only. `same`: query i is candidate i, and
    never meets itself. `graded`: the own weights are judgments, so that only own pairs are positives.
    `by_item`: every query weighs the same; otherwise a query weighs as much as its rows.
    `hard`: (query [n], candidate [n], first): candidates from `first` on are negatives in these pairs only.
    """

    q: Tensor
    c: Tensor
    relation: Relation
    own: tuple[Tensor, Tensor, Tensor]
    scale: Tensor
    bias: Tensor | None = None
    guide: Guide | None = None
    stale: int | None = None
    same: bool = False
    graded: bool = False
    by_item: bool = False
    hard: tuple[Tensor, Tensor, int] | None = None


def query_weights(view: View) -> Tensor:
    """[Q] how much each query counts; 0 for items that are candidates only."""
    i, _, w = view.own
    total = torch.zeros(len(view.q), device=view.q.device, dtype=torch.float32).index_add_(0, i, w.float())
    return (total > 0).float() if view.by_item else total


def masks(view: View, start: int, stop: int, related: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(pos, neg) [stop - start, C] bool of queries [start, stop). `related`: that part of the relation, when at hand."""
    pos = view.relation.block(start, stop) if related is None else related
    neg = ~pos
    if view.guide is not None:
        neg &= ~_too_alike(view, start, stop)
    if view.hard is not None:
        i, j, first = view.hard
        here = (i >= start) & (i < stop)
        mined = torch.zeros_like(neg)
        mined[i[here] - start, j[here]] = True
        neg[:, first : view.stale] &= mined[:, first : view.stale]
    if view.graded:
        i, j, w = own_of(view, start, stop)
        pos = torch.zeros_like(pos).index_put_((i, j), w > 0)
    if view.stale is not None:
        pos = pos.clone()
        pos[:, view.stale :] = False
    if view.same:
        me = torch.arange(stop - start, device=pos.device)
        pos, neg = pos.clone(), neg.clone()
        pos[me, me + start] = False
        neg[me, me + start] = False
    return pos, neg


def own_of(view: View, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor]:
    """The own pairs of queries [start, stop), the first made relative to `start`."""
    i, j, w = view.own
    if start == 0 and stop == len(view.q):
        return view.own
    keep = (i >= start) & (i < stop)
    return i[keep] - start, j[keep], w[keep]


def _too_alike(view: View, start: int, stop: int) -> Tensor:
    assert view.guide is not None
    i, j, _ = own_of(view, start, stop)
    sim = view.guide.q[start:stop] @ view.guide.c.T
    best = torch.full((stop - start,), torch.inf, device=sim.device, dtype=sim.dtype)
    best.scatter_reduce_(0, i, sim[i, j], "amax", include_self=False)
    return sim > (best - view.guide.margin)[:, None]


def dense(view: View, loss: RowLoss, sim: Tensor | None = None, related: Tensor | None = None) -> Tensor:
    """The weighted mean of `loss` over queries, all logits at once. `sim`, `related`: [Q, C] when the caller has them."""
    weight = query_weights(view)
    pos, neg = masks(view, 0, len(view.q), related)
    weight = weight * pos.any(1)
    sim = view.q @ view.c.T if sim is None else sim
    per_query = loss(Block(sim, pos, neg, view.own, view.scale, view.bias))
    return (per_query * weight).sum() / weight.sum().clamp_min(torch.finfo(torch.float32).tiny)
