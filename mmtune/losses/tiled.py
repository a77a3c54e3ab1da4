"""Contrastive losses whose Q x C logits never exist: exact value and gradient, memory of the vectors and a few tiles.

Inf-CL (Cheng et al. 2024, arXiv 2410.17243) does this for InfoNCE. Here any loss that is a sum over queries works: a block of
queries meets all candidates, its share of the value and of the gradients is taken at once and its logits are dropped. Plain
InfoNCE in both directions has a way of its own (`tiled_info_nce`) that shares the products of the two directions.

Of several processes that have the same vectors each takes a share of the queries, and the sums are added up: nobody makes all
logits and the arithmetic is divided. (Inf-CL sends vectors around a ring, so that nobody has all of those either. They are few
bytes beside the logits: 65,536 x 512 are 128 MiB a modality, and as much again for the gradient; all have all.)
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from mmtune.losses.contrast import Block, RowLoss, View, masks, own_of, query_weights
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

BLOCK_BYTES = 16 << 20  # of one block of logits; a loss makes about eight of that size at once
TILE = {"cpu": (1024, 2048), "cuda": (8192, 8192)}  # a tile's logits stay in a CPU's cache
PAIRS_AT_ONCE = 8192
LARGEST, SMALLEST = 75.0, 1e-28  # e^75 times a million terms is below float32's 3e38; a sum of 1e-28 lost nothing that counts
MATCH_LIMIT = 16  # related pairs an item on average, past which a list of them is no longer small


def tiled(view: View, loss: RowLoss, processes: Processes = SINGLE_PROCESS) -> Tensor:
    """`contrast.dense(view, loss)`, a block of queries at a time."""
    bias = view.bias if view.bias is not None else view.scale.new_zeros(())
    return _Rows.apply(view.q, view.c, view.scale, bias, view, loss, processes, torch.is_grad_enabled())


class _Rows(torch.autograd.Function):
    """Value and gradients in one sweep: each block's graph lives only inside forward."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        c: Tensor,
        scale: Tensor,
        bias: Tensor,
        view: View,
        loss: RowLoss,
        processes: Processes,
        graph: bool,
    ) -> Tensor:
        weight = query_weights(view)
        need = graph and any(ctx.needs_input_grad)
        rows = max(16, BLOCK_BYTES // (4 * max(1, len(c))))
        dq, dc = (torch.zeros_like(q), torch.zeros_like(c)) if need else (None, None)
        ds, db = torch.zeros_like(scale), torch.zeros_like(bias)
        value = torch.zeros((), dtype=torch.float64, device=q.device)
        norm = torch.zeros((), dtype=torch.float64, device=q.device)
        mine = processes.local_slice(len(q))
        for start in range(mine.start, mine.stop, rows):
            stop = min(start + rows, mine.stop)
            pos, neg = masks(view, start, stop)
            w = weight[start:stop] * pos.any(1)
            with torch.set_grad_enabled(need):
                sim = (q[start:stop] @ c.T).requires_grad_(need)
                s, b = scale.detach().requires_grad_(need), bias.detach().requires_grad_(need)
                block = Block(sim, pos, neg, own_of(view, start, stop), s, None if view.bias is None else b)
                part = (loss(block) * w).sum()
            value += part.detach().double()
            norm += w.sum().double()
            if dq is not None and dc is not None:
                g, gs, gb = torch.autograd.grad(part, (sim, s, b), allow_unused=True)
                del sim, block, part
                torch.mm(g, c, out=dq[start:stop])
                dc.addmm_(g.T, q[start:stop])
                ds += gs if gs is not None else 0
                db += gb if gb is not None else 0
        processes.all_reduce([value, norm] if dq is None or dc is None else [value, norm, dq, dc, ds, db])
        norm = norm.clamp_min(torch.finfo(torch.float32).tiny)
        if dq is not None and dc is not None:
            ctx.found = [x.div_(norm.to(x.dtype)) for x in (dq, dc, ds, db)]
        return (value / norm).to(q.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return *_scaled(ctx, gradient), None, None, None, None


def _scaled(ctx: Any, gradient: Tensor) -> list[Tensor]:
    if ctx.found is None:
        raise RuntimeError("a tiled loss keeps its gradients for one backward pass only")
    found, ctx.found = ctx.found, None
    return [x.mul_(gradient) for x in found]


def related_pairs(view: View) -> tuple[Tensor, Tensor] | None:
    """All related pairs of a view as a list without repeats; None when there are too many for a list to be small."""
    limit = MATCH_LIMIT * (len(view.q) + len(view.c))
    found = view.relation.matches(0, view.relation.shape[0], limit)
    if found is None:
        return None
    key = torch.unique(found[0] * view.relation.shape[1] + found[1])
    return key // view.relation.shape[1], key % view.relation.shape[1]


def tiled_info_nce(
    a: Tensor,
    b: Tensor,
    pairs: tuple[Tensor, Tensor],
    shares: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    left_out: tuple[Tensor, Tensor] | None = None,
    processes: Processes = SINGLE_PROCESS,
) -> Tensor:
    """InfoNCE from a [N, D] to b [M, D] and back in four tile products instead of six.

    pairs: (row of a, row of b) [P] that are to be told from the rest; shares: how much each counts, a to b and b to a [P];
    one scale a direction. Without `left_out` a pair's -log p is over all candidates (`positives: mean`); with it, the pairs
    (row of a, row of b), each once, are no negatives: a pair stands against the others alone (`positives: mask`).
    The first sweep takes both directions' normalisers, the second the gradients.
    """
    return _InfoNCE.apply(a, b, *scales, pairs, shares, left_out, processes, torch.is_grad_enabled())


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        sa: Tensor,
        sb: Tensor,
        pairs: Any,
        shares: Any,
        left_out: Any,
        processes: Processes,
        graph: bool,
    ) -> Tensor:
        (i, j), (ka, kb) = pairs, shares
        parts = torch.arange(len(i), device=a.device).split(PAIRS_AT_ONCE)
        cos = torch.cat([(a[i[k]] * b[j[k]]).sum(1) for k in parts])
        sweep = _Sweep(a, b, float(sa), float(sb), left_out, processes)
        lse_a, lse_b = sweep.normalisers()
        gap_a, gap_b = lse_a.float()[i] - sa * cos, lse_b.float()[j] - sb * cos
        if left_out is None:
            value = (ka * gap_a).sum() + (kb * gap_b).sum()
            pull_a, pull_b = ka, kb
        else:  # log(e^s + sum over the others) - s
            value = (ka * softplus(gap_a)).sum() + (kb * softplus(gap_b)).sum()
            pull_a, pull_b = ka * torch.sigmoid(gap_a), kb * torch.sigmoid(gap_b)
        if graph and any(ctx.needs_input_grad):
            wa = torch.zeros(len(a), device=a.device).index_add_(0, i, pull_a)
            wb = torch.zeros(len(b), device=a.device).index_add_(0, j, pull_b)
            da, db, ga, gb = sweep.gradients(wa, wb, lse_a, lse_b)
            pull = sa * pull_a + sb * pull_b
            for k in parts:
                da.index_add_(0, i[k], b[j[k]] * -pull[k, None])
                db.index_add_(0, j[k], a[i[k]] * -pull[k, None])
            ga, gb = ga - (pull_a * cos).sum(), gb - (pull_b * cos).sum()
            ctx.found = [da, db, ga.to(sa.dtype).reshape(sa.shape), gb.to(sb.dtype).reshape(sb.shape)]
        return value.to(a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return *_scaled(ctx, gradient), None, None, None, None, None


class _Sweep:
    """Tiles of cos = a b^T, made twice, in buffers made once.

    The exponentials are shifted by what keeps the largest possible one just below overflow, so that float32 reaches down to
    e^-160 of it and no running maximum is needed; directions of one scale share them. Should a sum vanish all the same, the
    sweep starts again with running log-sums (`careful`). Pairs that are `left_out` count as nothing.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        sa: float,
        sb: float,
        left_out: tuple[Tensor, Tensor] | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        self.a, self.b, self.sa, self.sb, self.processes = a, b, sa, sb, processes
        bound = float(a.norm(dim=1).max() * b.norm(dim=1).max())
        self.shift_a, self.shift_b = (max(0.0, abs(s) * bound - LARGEST) for s in (sa, sb))
        self.careful = False
        rows, columns = TILE["cuda" if a.is_cuda else "cpu"]
        self.rows, self.columns = min(rows, -(-len(a) // processes.world_size)), min(columns, len(b))
        self.buffers = [torch.empty(self.rows * self.columns, device=a.device) for _ in range(3)]
        self.across = -(-len(b) // self.columns)
        self.left_out = left_out
        if left_out is not None:  # by tile
            i, j = left_out
            tile = i // self.rows * self.across + j // self.columns
            order = torch.argsort(tile)
            self.left_out = i[order], j[order]
            count = self.across * -(-len(a) // self.rows)
            self.bounds = torch.searchsorted(tile[order], torch.arange(count + 1, device=a.device)).tolist()

    def drop(self, tile: Tensor, r: slice, c: slice, value: float = 0.0) -> Tensor:
        """Put `value` where the tile's pairs are left out."""
        if self.left_out is not None:
            at = r.start // self.rows * self.across + c.start // self.columns
            i, j = (x[self.bounds[at] : self.bounds[at + 1]] for x in self.left_out)
            tile[i - r.start, j - c.start] = value
        return tile

    def tiles(self):  # type: ignore[no-untyped-def]
        """(rows, columns, cosines, two spare buffers) of every tile; of several processes' each in its turn of rows."""
        for i in range(self.processes.rank * self.rows, len(self.a), self.processes.world_size * self.rows):
            r = slice(i, min(i + self.rows, len(self.a)))
            for j in range(0, len(self.b), self.columns):
                c = slice(j, min(j + self.columns, len(self.b)))
                shape = (r.stop - r.start, c.stop - c.start)
                cos, x, y = (t[: shape[0] * shape[1]].view(shape) for t in self.buffers)
                torch.mm(self.a[r], self.b[c].T, out=cos)
                yield r, c, cos, x, y

    def normalisers(self) -> tuple[Tensor, Tensor]:
        """log sum over b of e^(sa cos) [N] and log sum over a of e^(sb cos) [M]; -inf where all is left out."""
        rows = torch.zeros(len(self.a), dtype=torch.float64, device=self.a.device)
        columns = torch.zeros(len(self.b), dtype=torch.float64, device=self.a.device)
        for r, c, cos, x, _ in self.tiles():
            e = self.drop(_exp(cos, self.sa, self.shift_a, x), r, c)
            rows[r] += e.sum(1)
            columns[c] += (e if self.sa == self.sb else self.drop(_exp(cos, self.sb, self.shift_b, x), r, c)).sum(0)
        self.processes.all_reduce([rows, columns])
        if min(float(rows.min()), float(columns.min())) > SMALLEST:
            return rows.log() + self.shift_a, columns.log() + self.shift_b
        self.careful = True
        rows.fill_(-math.inf)
        columns.fill_(-math.inf)
        for r, c, cos, x, _ in self.tiles():
            rows[r] = torch.logaddexp(
                rows[r], torch.logsumexp(self.drop(torch.mul(cos, self.sa, out=x), r, c, -math.inf), 1).double()
            )
            columns[c] = torch.logaddexp(
                columns[c], torch.logsumexp(self.drop(torch.mul(cos, self.sb, out=x), r, c, -math.inf), 0).double()
            )
        count = self.processes.world_size
        rows, columns = (torch.logsumexp(self.processes.gather(x[None], count), 0) for x in (rows, columns))
        return rows, columns

    def gradients(self, wa: Tensor, wb: Tensor, lse_a: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of sum(wa * lse_a) + sum(wb * lse_b): with respect to a, b, sa, sb."""
        da, db = torch.zeros_like(self.a), torch.zeros_like(self.b)
        ga = torch.zeros((), dtype=torch.float64, device=self.a.device)
        gb = ga.clone()
        ua, ub = ((w * torch.exp(s - lse)).float() for w, lse, s in ((wa, lse_a, self.shift_a), (wb, lse_b, self.shift_b)))
        for r, c, cos, x, y in self.tiles():
            if self.careful:
                p = torch.mul(cos, self.sa, out=x).sub_(lse_a[r, None].float()).exp_().mul_(wa[r, None])
                s = torch.mul(cos, self.sb, out=y).sub_(lse_b[None, c].float()).exp_().mul_(wb[None, c])
                p, s = self.drop(p, r, c), self.drop(s, r, c)
                ga += torch.dot(p.flatten(), cos.flatten())
                gb += torch.dot(s.flatten(), cos.flatten())
                g = p.mul_(self.sa).add_(s, alpha=self.sb)
            elif self.sa == self.sb:
                e = self.drop(_exp(cos, self.sa, self.shift_a, x), r, c)
                cos.mul_(e)
                ga += ua[r] @ cos.sum(1)
                gb += cos.sum(0) @ ub[c]
                g = torch.add(ua[r, None] * self.sa, ub[None, c] * self.sb, out=y).mul_(e)
            else:
                p, s = _exp(cos, self.sa, self.shift_a, x), _exp(cos, self.sb, self.shift_b, y)
                p = self.drop(p.mul_(ua[r, None]), r, c)
                s = self.drop(s.mul_(ub[None, c]), r, c)
                ga += torch.dot(p.flatten(), cos.flatten())
                gb += torch.dot(s.flatten(), cos.flatten())
                g = p.mul_(self.sa).add_(s, alpha=self.sb)
            da[r].addmm_(g, self.b[c])
            db[c].addmm_(g.T, self.a[r])
        self.processes.all_reduce([da, db, ga, gb])
        return da, db, ga, gb


def _exp(cos: Tensor, scale: float, shift: float, out: Tensor) -> Tensor:
    torch.mul(cos, scale, out=out)
    return (out.sub_(shift) if shift else out).exp_()
