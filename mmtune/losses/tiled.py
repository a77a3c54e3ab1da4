"""Exact contrastive losses and gradients in tiles, without ever holding all Q x C logits in memory.

Memory is needed for the embeddings and a few tiles only. Inf-CL (Cheng et al. 2024, arXiv 2410.17243) does this for InfoNCE;
here it works for any loss that is a sum over queries. For each block of queries, the logits against all candidates are
computed, the block's contribution to the value and gradients is added up, and the logits are freed. Plain InfoNCE in both
directions has its own, faster implementation (`tiled_info_nce`), in which the two directions share matrix products.

If several processes hold the same embeddings, each computes a share of the queries, and the results are summed over processes.
So memory for logits and computation are divided. Inf-CL also distributes the embeddings, by sending them around a ring. Here
every process holds all of them, because they are small beside the logits: 65,536 x 512 floats are 128 MiB per modality, and
their gradients as much again.
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
from mmtune.runtime.devices import accumulation_dtype
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

BLOCK_BYTES = 16 << 20  # bytes of one block of logits; a loss holds about eight tensors of this size at once
TILE = {"cpu": (1024, 2048), "cuda": (8192, 8192)}  # (queries, candidates) of a tile; on a CPU, a tile fits in the cache
PAIRS_AT_ONCE = 8192  # positive pairs whose embeddings are gathered at once; bounds the memory of the gathered rows
LARGEST_EXPONENT = 60.0  # a sum of 10^12 terms of e^60 is below the float32 maximum, and 10^-11 / e^60 above its minimum
SMALLEST_SUM = 1e-28  # if a sum is larger than this, float32 underflow has not removed any term that matters
MATCH_LIMIT = 16  # maximum average number of positives per item for which a list of positive pairs is used


def tiled_loss(batch: QueryCandidateBatch, loss: PerQueryLoss, processes: Processes = SINGLE_PROCESS) -> Tensor:
    """Compute the same value as `contrastive.dense_loss(batch, loss)`, one block of queries at a time."""
    bias = batch.bias if batch.bias is not None else batch.scale.new_zeros(())
    inputs = batch.queries, batch.candidates, batch.scale, bias
    return _QueryBlocks.apply(*inputs, batch, loss, processes, torch.is_grad_enabled())


class _QueryBlocks(torch.autograd.Function):
    """Compute the value and the gradients in one pass. The autograd graph of each block exists only inside `forward`."""

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
        value = torch.zeros((), dtype=accumulation_dtype(queries.device), device=queries.device)
        norm = torch.zeros((), dtype=accumulation_dtype(queries.device), device=queries.device)
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
            value += part.detach().to(value.dtype)
            norm += w.sum().to(norm.dtype)
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
    """Multiply the gradients that `forward` stored in `ctx` by the incoming gradient, in place, and return them."""
    if ctx.gradients is None:
        raise RuntimeError("backward was called twice on a tiled loss; its gradients are freed after the first call")
    gradients, ctx.gradients = ctx.gradients, None
    return [g.mul_(gradient) for g in gradients]


def positive_pairs(mask: PositivesMask) -> tuple[Tensor, Tensor] | None:
    """List all positives as (query [P], candidate [P]) without repeats, or return None if there are more than MATCH_LIMIT per
    item on average.
    """
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
    """Compute InfoNCE from a [N, D] to b [M, D] and from b to a, with four matrix products per tile instead of six.

    The first pass over the tiles computes the log normalisers of both directions, the second pass the gradients.

    pairs: the positives as (row of a [P], row of b [P])
    weights: the weight of each positive in the loss, for a to b [P] and for b to a [P]
    scales: the logit scale of each direction
    ignored: None for `positives: mean`, where each -log p is normalised over all candidates. For `positives: mask`, the pairs
        (row of a, row of b), without repeats, that are not negatives; each positive is then compared with the other candidates
    """
    return _InfoNCE.apply(a, b, *scales, pairs, weights, ignored, processes, torch.is_grad_enabled())


class _InfoNCE(torch.autograd.Function):
    """Compute the value from the log normalisers and the logits of the positives, then the gradients in a second pass."""

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
        else:  # -log p with only this positive in the normaliser: log(e^l + sum of e^l over the negatives) - l
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
    """Iterates over the tiles of cos = a b^T, which are computed again in each pass into buffers that are allocated once.

    A constant is subtracted from all exponents, so that the largest possible exponential is e^60: sums over all items of a large
    batch, and the weight of an item divided by such a sum, are float32 numbers of full precision. Exponentials down to about
    e^-145 of the largest are represented, so that no running maximum is needed. If both directions have
    the same scale, they share the exponentials. If a sum underflows nevertheless, `log_normalisers` starts again with running
    log-sum-exps (`running_maximum`). The pairs in `ignored` contribute nothing.
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
        if ignored is not None:  # sort the ignored pairs by tile, so that each tile finds its own as one slice
            i, j = ignored
            tile = i // self.rows * self.across + j // self.columns
            order = torch.argsort(tile)
            self.ignored = i[order], j[order]
            count = self.across * -(-len(a) // self.rows)
            self.bounds = torch.searchsorted(tile[order], torch.arange(count + 1, device=a.device)).tolist()

    def ignore(self, tile: Tensor, r: slice, c: slice, value: float = 0.0) -> Tensor:
        """Set the ignored pairs of this tile to `value`, in place."""
        if self.ignored is not None:
            at = r.start // self.rows * self.across + c.start // self.columns
            i, j = (x[self.bounds[at] : self.bounds[at + 1]] for x in self.ignored)
            tile[i - r.start, j - c.start] = value
        return tile

    def __iter__(self) -> Iterator[tuple[slice, slice, Tensor, Tensor, Tensor]]:
        """Yield (rows, columns, cosines, two scratch buffers) for every tile of this process.

        Several processes take rows of tiles in turn (round-robin).
        """
        for i in range(self.processes.rank * self.rows, len(self.a), self.processes.world_size * self.rows):
            r = slice(i, min(i + self.rows, len(self.a)))
            for j in range(0, len(self.b), self.columns):
                c = slice(j, min(j + self.columns, len(self.b)))
                shape = (r.stop - r.start, c.stop - c.start)
                cos, x, y = (t[: shape[0] * shape[1]].view(shape) for t in self.buffers)
                torch.mm(self.a[r], self.b[c].T, out=cos)
                yield r, c, cos, x, y

    def log_normalisers(self) -> tuple[Tensor, Tensor]:
        """Return log sum over b of e^(scale_a * cos) [N], and log sum over a of e^(scale_b * cos) [M].

        A value is -inf if all pairs of the item are ignored.
        """
        rows = torch.zeros(len(self.a), dtype=accumulation_dtype(self.a.device), device=self.a.device)
        columns = torch.zeros(len(self.b), dtype=accumulation_dtype(self.a.device), device=self.a.device)
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
                rows[r], torch.logsumexp(self.ignore(torch.mul(cos, self.scale_a, out=x), r, c, -math.inf), 1).to(rows.dtype)
            )
            columns[c] = torch.logaddexp(
                columns[c],
                torch.logsumexp(self.ignore(torch.mul(cos, self.scale_b, out=x), r, c, -math.inf), 0).to(columns.dtype),
            )
        count = self.processes.world_size
        rows, columns = (torch.logsumexp(self.processes.gather(x[None], count), 0) for x in (rows, columns))
        return rows, columns

    def gradients(
        self, query_weight_a: Tensor, query_weight_b: Tensor, log_z_a: Tensor, log_z_b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of sum(query_weight_a * log_z_a) + sum(query_weight_b * log_z_b) with respect to a, b and the two scales."""
        grad_a, grad_b = torch.zeros_like(self.a), torch.zeros_like(self.b)
        grad_scale_a = torch.zeros((), dtype=accumulation_dtype(self.a.device), device=self.a.device)
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
    """Write e^(scale * cos - shift) to `out` and return it."""
    torch.mul(cos, scale, out=out)
    return (out.sub_(shift) if shift else out).exp_()
