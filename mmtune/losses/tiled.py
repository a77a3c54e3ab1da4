"""Contrastive losses whose Q x C logits never exist: exact value and gradient, memory of the vectors and a few tiles.

Inf-CL (Cheng et al. 2024, arXiv 2410.17243) does this for InfoNCE. Here any loss that is a sum over queries works: the logits
of a block of queries against all candidates are made, the block's part of the value and of the gradients is taken at once,
and its logits are freed. Plain InfoNCE in both directions has its own implementation (`tiled_info_nce`), which weights the
matrix products of the two directions.

Of several processes that have the same vectors each takes a share of the queries, and the sums are reduced over processes:
none makes all logits, and the arithmetic is divided. (Inf-CL sends vectors around a ring, so that no process has all of those
either. They are few bytes beside the logits: 65,536 x 512 are 128 MiB a modality, and as much again for the gradient; here
every process has all.)
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from mmtune.losses.contrastive import (
    ContrastiveBlock,
    PerQueryLoss,
    QueryCandidateBatch,
    contrastive_masks,
    query_weights,
    row_pairs_between,
)
from mmtune.losses.positives_mask import PositivesMask
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

BLOCK_BYTES = 16 << 20  # of one block of logits; a loss makes about eight of that size at once
TILE = {"cpu": (1024, 2048), "cuda": (8192, 8192)}  # (queries, candidates); a tile's logits stay in a CPU's cache
PAIRS_AT_ONCE = 8192
LARGEST_EXPONENT = 75.0  # e^75 times a million terms is below float32's 3e38
SMALLEST_SUM = 1e-28  # a sum of this size has lost no term that counts
MATCH_LIMIT = 16  # positives an item on average, past which a list of them is no longer small


def tiled_loss(batch: QueryCandidateBatch, loss: PerQueryLoss, processes: Processes = SINGLE_PROCESS) -> Tensor:
    """`contrastive.dense_loss(batch, loss)`, a block of queries at a time."""
    bias = batch.bias if batch.bias is not None else batch.scale.new_zeros(())
    inputs = batch.queries, batch.candidates, batch.scale, bias
    return _QueryBlocks.apply(*inputs, batch, loss, processes, torch.is_grad_enabled())


class _QueryBlocks(torch.autograd.Function):
    """Value and gradients in one pass: each block's graph exists inside forward only."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        candidates: Tensor,
        scale: Tensor,
        bias: Tensor,
        batch: QueryCandidateBatch,
        loss: PerQueryLoss,
        processes: Processes,
        with_gradient: bool,
    ) -> Tensor:
        weight = query_weights(batch)
        need = with_gradient and any(ctx.needs_input_grad)
        rows = max(16, BLOCK_BYTES // (4 * max(1, len(candidates))))
        grad_queries = torch.zeros_like(queries) if need else None
        grad_candidates = torch.zeros_like(candidates) if need else None
        grad_scale, grad_bias = torch.zeros_like(scale), torch.zeros_like(bias)
        value = torch.zeros((), dtype=torch.float64, device=queries.device)
        norm = torch.zeros((), dtype=torch.float64, device=queries.device)
        share = processes.local_slice(len(queries))
        for start in range(share.start, share.stop, rows):
            stop = min(start + rows, share.stop)
            positives, negatives = contrastive_masks(batch, start, stop)
            w = weight[start:stop] * positives.any(1)
            with torch.set_grad_enabled(need):
                similarity = (queries[start:stop] @ candidates.T).requires_grad_(need)
                s, b = scale.detach().requires_grad_(need), bias.detach().requires_grad_(need)
                row_pairs = row_pairs_between(batch, start, stop)
                own_bias = None if batch.bias is None else b
                block = ContrastiveBlock(similarity, positives, negatives, row_pairs, s, own_bias, batch.graded)
                part = (loss(block) * w).sum()
            value += part.detach().double()
            norm += w.sum().double()
            if grad_queries is not None and grad_candidates is not None:
                inputs = (similarity, s, b)
                grad_similarity, part_scale, part_bias = torch.autograd.grad(part, inputs, allow_unused=True)
                del similarity, block, part, inputs
                torch.mm(grad_similarity, candidates, out=grad_queries[start:stop])
                grad_candidates.addmm_(grad_similarity.T, queries[start:stop])
                grad_scale += part_scale if part_scale is not None else 0
                grad_bias += part_bias if part_bias is not None else 0
        gradients = [g for g in (grad_queries, grad_candidates, grad_scale, grad_bias) if need and g is not None]
        processes.all_reduce([value, norm, *gradients])
        norm = norm.clamp_min(torch.finfo(torch.float32).tiny)
        ctx.gradients = [g.div_(norm.to(g.dtype)) for g in gradients]
        return (value / norm).to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *_scaled_gradients(ctx, gradient), None, None, None, None


def _scaled_gradients(ctx: Any, gradient: Tensor) -> list[Tensor]:
    """The gradients that forward left in `ctx`, times the incoming one, in place."""
    if ctx.gradients is None:
        raise RuntimeError("a tiled loss keeps its gradients for one backward pass only")
    gradients, ctx.gradients = ctx.gradients, None
    return [g.mul_(gradient) for g in gradients]


def positive_pairs(mask: PositivesMask) -> tuple[Tensor, Tensor] | None:
    """All positives as a list (query [P], candidate [P]) without repeats; None when there are too many for a small list."""
    queries, candidates = mask.shape
    pairs = mask.pairs(0, queries, limit=MATCH_LIMIT * (queries + candidates))
    if pairs is None:
        return None
    key = torch.unique(pairs[0] * candidates + pairs[1])
    return key // candidates, key % candidates


def tiled_info_nce(
    a: Tensor,
    b: Tensor,
    pairs: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    ignored: tuple[Tensor, Tensor] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Tensor:
    """InfoNCE from a [N, D] to b [M, D] and back in four matrix products a tile instead of six.

    pairs: (row of a, row of b) [P], the positives; weights: the weight of each in the loss, a to b and b to a [P]; one scale a
    direction. Without `ignored` a pair's -log p is over all candidates (`positives: mean`); with it, the pairs
    (row of a, row of b), each once, are no negatives: a positive is compared with the others alone (`positives: mask`).
    The first pass computes both directions' log normalisers, the second the gradients.
    """
    return _InfoNCE.apply(a, b, *scales, pairs, weights, ignored, processes, torch.is_grad_enabled())


class _InfoNCE(torch.autograd.Function):
    """The value from the log normalisers and the positives' logits; the gradients in a second pass over the tiles."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        scale_a: Tensor,
        scale_b: Tensor,
        pairs: tuple[Tensor, Tensor],
        weights: tuple[Tensor, Tensor],
        ignored: tuple[Tensor, Tensor] | None,
        processes: Processes,
        with_gradient: bool,
    ) -> Tensor:
        (i, j), (weight_a, weight_b) = pairs, weights
        parts = torch.arange(len(i), device=a.device).split(PAIRS_AT_ONCE)
        cos = torch.cat([(a[i[k]] * b[j[k]]).sum(1) for k in parts])
        tiles = _Tiles(a, b, float(scale_a), float(scale_b), ignored, processes)
        log_z_a, log_z_b = tiles.log_normalisers()
        nll_a, nll_b = log_z_a.float()[i] - scale_a * cos, log_z_b.float()[j] - scale_b * cos
        if ignored is None:
            value = (weight_a * nll_a).sum() + (weight_b * nll_b).sum()
            pair_grad_a, pair_grad_b = weight_a, weight_b
        else:  # log(e^l + sum over the others) - l
            value = (weight_a * softplus(nll_a)).sum() + (weight_b * softplus(nll_b)).sum()
            pair_grad_a, pair_grad_b = weight_a * torch.sigmoid(nll_a), weight_b * torch.sigmoid(nll_b)
        ctx.gradients = None
        if with_gradient and any(ctx.needs_input_grad):
            query_weight_a = torch.zeros(len(a), device=a.device).index_add_(0, i, pair_grad_a)
            query_weight_b = torch.zeros(len(b), device=a.device).index_add_(0, j, pair_grad_b)
            grad_a, grad_b, grad_scale_a, grad_scale_b = tiles.gradients(query_weight_a, query_weight_b, log_z_a, log_z_b)
            pair_grad = scale_a * pair_grad_a + scale_b * pair_grad_b
            for k in parts:
                grad_a.index_add_(0, i[k], b[j[k]] * -pair_grad[k, None])
                grad_b.index_add_(0, j[k], a[i[k]] * -pair_grad[k, None])
            grad_scale_a, grad_scale_b = grad_scale_a - (pair_grad_a * cos).sum(), grad_scale_b - (pair_grad_b * cos).sum()
            ctx.gradients = [
                grad_a,
                grad_b,
                grad_scale_a.to(scale_a.dtype).reshape(scale_a.shape),
                grad_scale_b.to(scale_b.dtype).reshape(scale_b.shape),
            ]
        return value.to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return *_scaled_gradients(ctx, gradient), None, None, None, None, None


class _Tiles:
    """The tiles of cos = a b^T, computed in each of two passes, in buffers that are allocated once.

    The exponentials are shifted so that the largest possible one is just below overflow: float32 reaches down to e^-160 of
    it, and no running maximum is needed; directions of one scale share the exponentials. Should a sum vanish all the same,
    the pass starts again with running log-sums (`running_maximum`). Pairs that are `ignored` contribute nothing.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        scale_a: float,
        scale_b: float,
        ignored: tuple[Tensor, Tensor] | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.a, self.b, self.scale_a, self.scale_b, self.processes = a, b, scale_a, scale_b, processes
        bound = float(a.norm(dim=1).max() * b.norm(dim=1).max())
        self.shift_a, self.shift_b = (max(0.0, abs(s) * bound - LARGEST_EXPONENT) for s in (scale_a, scale_b))
        self.running_maximum = False
        rows, columns = TILE["cuda" if a.is_cuda else "cpu"]
        self.rows, self.columns = min(rows, -(-len(a) // processes.world_size)), min(columns, len(b))
        self.buffers = [torch.empty(self.rows * self.columns, device=a.device) for _ in range(3)]
        self.across = -(-len(b) // self.columns)
        self.ignored = ignored
        if ignored is not None:  # by tile
            i, j = ignored
            tile = i // self.rows * self.across + j // self.columns
            order = torch.argsort(tile)
            self.ignored = i[order], j[order]
            count = self.across * -(-len(a) // self.rows)
            self.bounds = torch.searchsorted(tile[order], torch.arange(count + 1, device=a.device)).tolist()

    def ignore(self, tile: Tensor, r: slice, c: slice, value: float = 0.0) -> Tensor:
        """Put `value` where the tile's pairs are ignored."""
        if self.ignored is not None:
            at = r.start // self.rows * self.across + c.start // self.columns
            i, j = (x[self.bounds[at] : self.bounds[at + 1]] for x in self.ignored)
            tile[i - r.start, j - c.start] = value
        return tile

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """(rows, columns, cosines, two spare buffers) of every tile; several processes take the rows of tiles in turn."""
        for i in range(self.processes.rank * self.rows, len(self.a), self.processes.world_size * self.rows):
            r = slice(i, min(i + self.rows, len(self.a)))
            for j in range(0, len(self.b), self.columns):
                c = slice(j, min(j + self.columns, len(self.b)))
                shape = (r.stop - r.start, c.stop - c.start)
                cos, x, y = (t[: shape[0] * shape[1]].view(shape) for t in self.buffers)
                torch.mm(self.a[r], self.b[c].T, out=cos)
                yield r, c, cos, x, y

    def log_normalisers(self) -> tuple[Tensor, Tensor]:
        """log sum over b of e^(scale_a cos) [N] and log sum over a of e^(scale_b cos) [M]; -inf where all pairs are ignored."""
        rows = torch.zeros(len(self.a), dtype=torch.float64, device=self.a.device)
        columns = torch.zeros(len(self.b), dtype=torch.float64, device=self.a.device)
        for r, c, cos, x, _ in self:
            e = self.ignore(_exp(cos, self.scale_a, self.shift_a, x), r, c)
            rows[r] += e.sum(1)
            columns[c] += (
                e if self.scale_a == self.scale_b else self.ignore(_exp(cos, self.scale_b, self.shift_b, x), r, c)
            ).sum(0)
        self.processes.all_reduce([rows, columns])
        if min(float(rows.min()), float(columns.min())) > SMALLEST_SUM:
            return rows.log() + self.shift_a, columns.log() + self.shift_b
        self.running_maximum = True
        rows.fill_(-math.inf)
        columns.fill_(-math.inf)
        for r, c, cos, x, _ in self:
            rows[r] = torch.logaddexp(
                rows[r], torch.logsumexp(self.ignore(torch.mul(cos, self.scale_a, out=x), r, c, -math.inf), 1).double()
            )
            columns[c] = torch.logaddexp(
                columns[c], torch.logsumexp(self.ignore(torch.mul(cos, self.scale_b, out=x), r, c, -math.inf), 0).double()
            )
        count = self.processes.world_size
        rows, columns = (torch.logsumexp(self.processes.gather(x[None], count), 0) for x in (rows, columns))
        return rows, columns

    def gradients(
        self, query_weight_a: Tensor, query_weight_b: Tensor, log_z_a: Tensor, log_z_b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of sum(query_weight_a * log_z_a) + sum(query_weight_b * log_z_b) with respect to a, b and both scales."""
        grad_a, grad_b = torch.zeros_like(self.a), torch.zeros_like(self.b)
        grad_scale_a = torch.zeros((), dtype=torch.float64, device=self.a.device)
        grad_scale_b = grad_scale_a.clone()
        weight_over_z_a, weight_over_z_b = (
            (w * torch.exp(s - log_z)).float()
            for w, log_z, s in ((query_weight_a, log_z_a, self.shift_a), (query_weight_b, log_z_b, self.shift_b))
        )
        for r, c, cos, x, y in self:
            if self.running_maximum:
                p = torch.mul(cos, self.scale_a, out=x).sub_(log_z_a[r, None].float()).exp_().mul_(query_weight_a[r, None])
                s = torch.mul(cos, self.scale_b, out=y).sub_(log_z_b[None, c].float()).exp_().mul_(query_weight_b[None, c])
                p, s = self.ignore(p, r, c), self.ignore(s, r, c)
                grad_scale_a += torch.dot(p.flatten(), cos.flatten())
                grad_scale_b += torch.dot(s.flatten(), cos.flatten())
                g = p.mul_(self.scale_a).add_(s, alpha=self.scale_b)
            elif self.scale_a == self.scale_b:
                e = self.ignore(_exp(cos, self.scale_a, self.shift_a, x), r, c)
                cos.mul_(e)
                grad_scale_a += weight_over_z_a[r] @ cos.sum(1)
                grad_scale_b += cos.sum(0) @ weight_over_z_b[c]
                g = torch.add(weight_over_z_a[r, None] * self.scale_a, weight_over_z_b[None, c] * self.scale_b, out=y).mul_(e)
            else:
                p, s = _exp(cos, self.scale_a, self.shift_a, x), _exp(cos, self.scale_b, self.shift_b, y)
                p = self.ignore(p.mul_(weight_over_z_a[r, None]), r, c)
                s = self.ignore(s.mul_(weight_over_z_b[None, c]), r, c)
                grad_scale_a += torch.dot(p.flatten(), cos.flatten())
                grad_scale_b += torch.dot(s.flatten(), cos.flatten())
                g = p.mul_(self.scale_a).add_(s, alpha=self.scale_b)
            grad_a[r].addmm_(g, self.b[c])
            grad_b[c].addmm_(g.T, self.a[r])
        self.processes.all_reduce([grad_a, grad_b, grad_scale_a, grad_scale_b])
        return grad_a, grad_b, grad_scale_a, grad_scale_b


def _exp(cos: Tensor, scale: float, shift: float, out: Tensor) -> Tensor:
    torch.mul(cos, scale, out=out)
    return (out.sub_(shift) if shift else out).exp_()
