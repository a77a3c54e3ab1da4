"""Exact nearest candidates by a blocked scan: low precision finds what can be among the best, exact cosines decide.

For each block of queries the scan walks the candidates in chunks, keeps every candidate whose approximate score is within
twice the error bound of the k-th best so far, and settles these with exact keys (`mmtune.search.exact`). Whatever is dropped is
proved to be outside the top k, so the answer is that of the full matrix, whatever the grid, the block or the memory.
"""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmtune.errors import MissingExtra
from mmtune.relevance.known_positives import Known, Relevance
from mmtune.relevance.mining_items import Items
from mmtune.search.exact import GRID, pair_keys
from mmtune.search.parallel import workers
from mmtune.search.quantised import grid, slack

CHUNK = 4096
GROUP = 32  # neighbouring columns that share one maximum: the scan compares maxima first
MAX_NEAR = 1 << 17
NONE = np.iinfo(np.int64).max
NOTHING = (np.zeros(0, np.int16), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32))


@dataclass
class Plan:
    """Sizes that keep the scan within its memory: queries a block, survivors held, bytes for prepared candidates."""

    block: int
    survivors: int
    room: int


def plan(memory_mb: int, dim: int, k: int, threads: int) -> Plan:
    """Half of the memory may hold prepared candidates, a quarter accumulators, a quarter survivors and their sorting, the
    quarters shared by `threads` blocks at a time."""
    memory = memory_mb * 2**20
    share = memory // 4 // threads
    block = int(min(1024, max(16, share // (CHUNK * 5 + dim * 16))))
    return Plan(block, int(max(4 * block * k, share // 128)), memory // 2)


def faiss_module() -> Any:
    """faiss, or the line that installs it."""
    try:
        import faiss
    except ImportError:
        raise MissingExtra('mining needs faiss: pip install "mmtune[cpu]" (or "mmtune[gpu]")') from None
    return faiss


def pair_dots(a: np.ndarray, i: np.ndarray, b: np.ndarray, j: np.ndarray) -> np.ndarray:
    """float32 [P] a[i] . b[j] for contiguous float32 a, b: within `slack` of exact."""
    faiss = faiss_module()
    out = np.empty(len(i), np.float32)
    i, j = np.ascontiguousarray(i, np.int64), np.ascontiguousarray(j, np.int64)
    p = faiss.swig_ptr
    if len(i):
        faiss.pairwise_indexed_inner_product(a.shape[1], len(i), p(a), p(i), p(b), p(j), p(out))
    return out


def exact_pairs(a: np.ndarray, i: np.ndarray, b: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Keys int32 [P] of the pairs (a[i], b[j]): `similarity.pair_keys` in steps that stay in the cache."""
    out = np.empty(len(i), np.int32)
    limit = 0.5 - 2 * (a.shape[1] + 2) * 2.0**-53 * GRID
    step = max(64, 2**18 // a.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        sums = np.einsum("pd,pd->p", a[i[part]].astype(np.float64), b[j[part]].astype(np.float64)) * GRID
        keys = np.rint(sums)
        doubtful = np.flatnonzero(np.abs(sums - keys) > limit)
        out[part] = keys.clip(-GRID, GRID)
        if len(doubtful):
            at = doubtful + start
            out[at] = pair_keys(a, b, i[at], j[at])
    return out


def by_owner(owner: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray, int]:
    """(order that groups pairs by owner, place of each within its owner in that order, the longest list)."""
    order = np.argsort(owner.astype(np.int16), kind="stable")  # 16 bits: a radix sort; blocks are smaller than that
    counts = np.bincount(owner, minlength=rows)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return order, np.arange(len(owner)) - starts, int(counts.max(initial=0))


def best(owner: np.ndarray, items: np.ndarray, keys: np.ndarray, rows: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(items int64, keys int32) [rows, k] in the total order from pairs in any order; places that stay empty have item -1."""
    order, place, longest = by_owner(owner, rows)
    packed = np.full((rows, max(longest, k)), NONE, np.int64)
    packed[owner[order], place] = ((GRID - keys[order].astype(np.int64)) << 32) | items[order]
    packed.sort(axis=1)
    packed = packed[:, :k]
    empty = packed == NONE
    found = np.where(empty, -1, packed & 0xFFFFFFFF)
    return found, np.where(empty, -GRID, GRID - (packed >> 32)).astype(np.int32)


def kth_largest(owner: np.ndarray, values: np.ndarray, rows: int, k: int) -> np.ndarray:
    """float32 [rows]: the k-th largest value of each owner, -inf where there are fewer."""
    order, place, longest = by_owner(owner, rows)
    width = max(longest, k)
    wide = np.full((rows, width), -np.inf, np.float32)
    wide[owner[order], place] = values[order]
    wide.partition(width - k, axis=1)
    return wide[:, width - k]


class ExactSearch:
    """Top k candidates that are not known positives, for blocks of queries."""

    name = "exact"

    def __init__(self, candidates: Items, memory_mb: int = 1024, device: str = "cpu", k: int = 64):
        self.candidates, self.k = candidates, k
        self.plan = plan(memory_mb, candidates.dim, k, workers(device))
        self.grid = grid(candidates, CHUNK, device, self.plan.room)
        self.block, self.device = self.plan.block, device
        self._kept = threading.local()

    def top(self, queries: Items, q: np.ndarray, relevance: Relevance) -> tuple[np.ndarray, np.ndarray]:
        """(items int64 [B, k], -1 where there are no more; keys int32 [B, k]) for query items q [B], B <= block."""
        return _Pass(self, queries.take(q), relevance.known(q)).run()

    def buffers(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulators [rows, CHUNK] and their maxima. Pages of fresh memory cost more than the product itself, so each thread
        keeps its own."""
        if not hasattr(self._kept, "sums"):
            sizes = self.block * CHUNK, self.block * CHUNK // GROUP
            self._kept.sums, self._kept.tops = (torch.empty(n, dtype=self.grid.dtype, device=self.device) for n in sizes)
        sums, tops = self._kept.sums[: rows * CHUNK], self._kept.tops[: rows * CHUNK // GROUP]
        return sums.view(rows, CHUNK), tops.view(rows, CHUNK // GROUP)


class _Pass:
    """One block of queries against all candidates. `floor` [B]: the k-th best score of each query is at least this."""

    def __init__(self, search: ExactSearch, q_BD: np.ndarray, known: Known):
        self.s, self.q_BD, self.k, self.rows = search, q_BD, search.k, len(q_BD)
        self.queries = search.grid.queries(q_BD)
        place = search.grid.place
        at = place[known.pair_c]
        order = np.argsort(at, kind="stable")
        self.pair_at, self.pair_q = at[order], known.pair_q[order]
        self.big = [(q, np.sort(place[members])) for q, members in known.big]
        self.floor = np.full(self.rows, -np.inf)
        # survivors: owner, item, upper bound of the score, float32 score (-inf: not computed)
        self.pool: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = [NOTHING]
        self.held = 0
        self.settled = (np.full((self.rows, self.k), -1, np.int64), np.full((self.rows, self.k), -GRID, np.int32))

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """The answer of the block."""
        n, g = len(self.s.candidates), self.s.grid
        sums, tops = self.s.buffers(self.rows)
        for number in range(-(-n // CHUNK)):
            start = number * CHUNK
            g.product(self.queries, number, sums)
            if start + CHUNK > n:
                sums[:, n - start :] = g.low
            self._mask(sums, start)
            torch.amax(sums.view(self.rows, CHUNK // GROUP, GROUP), 2, out=tops)
            unit, eps = g.bounds(self.queries, number)
            if number == 0 and CHUNK // GROUP >= self.k:
                # the k-th largest maximum is at most the k-th largest value
                kth = tops.topk(self.k, 1).values[:, -1].double().cpu().numpy()
                self.floor = np.where(kth > g.low, unit * kth + self.queries.shift - eps, -np.inf)
            least = self._least(unit, eps)
            self._collect(sums, tops.cpu().numpy(), least, number, 0, self.rows)
            if number & (number + 1) == 0:  # 0, 1, 3, 7, ...: later the floor hardly moves
                self._lead()
            if self.held > self.s.plan.survivors:
                self._settle()
        self._settle()
        return self.settled

    def _mask(self, sums: torch.Tensor, start: int) -> None:
        low, device = self.s.grid.low, sums.device
        a, b = np.searchsorted(self.pair_at, [start, start + CHUNK])
        if b > a:
            sums[torch.from_numpy(self.pair_q[a:b]).to(device), torch.from_numpy(self.pair_at[a:b] - start).to(device)] = low
        for q, at in self.big:
            a, b = np.searchsorted(at, [start, start + CHUNK])
            if b > a:
                sums[torch.from_numpy(q).to(device)[:, None], torch.from_numpy(at[a:b] - start).to(device)[None, :]] = low

    def _least(self, unit: np.ndarray, eps: np.ndarray) -> np.ndarray:
        """Accumulators below this belong to scores below the floor for sure; never as low as what is masked."""
        g = self.s.grid
        least = (self.floor - eps - self.queries.shift) / unit
        if g.dtype == torch.int32:
            return np.floor(np.clip(least, g.low + 1, 2**31 - 1)).astype(np.int32)
        return np.maximum(np.nextafter(least.astype(np.float32), np.float32(-np.inf)), np.float32(-3e38))

    def _collect(self, sums: torch.Tensor, tops: np.ndarray, least: np.ndarray, number: int, r0: int, r1: int) -> None:
        """Keep what reaches `least`, a group of columns at a time; halves the rows when too much does."""
        b, g = np.divmod(np.flatnonzero(tops[r0:r1] >= least[r0:r1, None]), CHUNK // GROUP)
        if len(b) > MAX_NEAR and r1 - r0 > 1:
            middle = (r0 + r1) // 2
            self._collect(sums, tops, least, number, r0, middle)
            self._collect(sums, tops, least, number, middle, r1)
            return
        if not len(b):
            return
        b += r0
        values = self._group(sums, b, g)
        at = np.flatnonzero(values >= least[b][:, None])
        h, i = np.divmod(at, GROUP)
        owner, value, at = b[h], values.ravel()[at].astype(np.float64), g[h] * GROUP + i + number * CHUNK
        unit, eps = self.s.grid.bounds(self.queries, number)
        # float32, with room for its own rounding
        upper = (unit[owner] * value + (self.queries.shift + eps + 3e-7)[owner]).astype(np.float32)
        item = self.s.grid.order[at].astype(np.int32)
        self.pool.append((owner.astype(np.int16), item, upper, np.full(len(owner), -np.inf, np.float32)))
        self.held += len(owner)
        if self.held > self.s.plan.survivors:
            self._settle()

    def _group(self, sums: torch.Tensor, b: np.ndarray, g: np.ndarray) -> np.ndarray:
        """The GROUP accumulators [n, GROUP] behind the maxima (b, g)."""
        wide, at = sums.view(-1, GROUP), b * (CHUNK // GROUP) + g
        if sums.device.type == "cpu":
            return wide.numpy()[at]
        return wide[torch.from_numpy(at).to(sums.device)].cpu().numpy()

    def _floors(self, owner: np.ndarray) -> np.ndarray:
        """The floor of each pair's query in float32, rounded down."""
        return np.nextafter(self.floor.astype(np.float32), np.float32(-np.inf))[owner]

    def _dot(self, owner: np.ndarray, item: np.ndarray, dots: np.ndarray, which: np.ndarray) -> None:
        c = self.s.candidates
        dots[which] = pair_dots(self.q_BD, owner[which], c.vectors, c.head[item[which]])

    def _lead(self) -> None:
        """Score those that look best, in float32, and raise the floor to what they reach."""
        owner, item, upper, dots = (np.concatenate(x) for x in zip(*self.pool, strict=True))
        keep = np.flatnonzero(upper >= self._floors(owner))
        owner, item, upper, dots = owner[keep], item[keep], upper[keep], dots[keep]
        leader = upper >= kth_largest(owner, upper, self.rows, self.k)[owner]
        self._dot(owner, item, dots, np.flatnonzero(leader & np.isneginf(dots)))
        self.floor = np.maximum(self.floor, kth_largest(owner, dots, self.rows, self.k) - slack(self.s.candidates.dim))
        self.pool, self.held = [(owner, item, upper, dots)], len(owner)

    def _settle(self) -> None:
        """Exact keys for what float32 cannot tell from the best k; only the best k are kept."""
        self._lead()
        owner, item, upper, dots = self.pool[0]
        self._dot(owner, item, dots, np.flatnonzero((upper >= self._floors(owner)) & np.isneginf(dots)))
        bound = slack(self.s.candidates.dim)
        self.floor = np.maximum(self.floor, kth_largest(owner, dots, self.rows, self.k) - bound)
        keep = dots >= self._floors(owner) - np.float32(1.01 * (bound + 1.0 / GRID))
        owner, item = owner[keep], item[keep]
        c = self.s.candidates
        keys = exact_pairs(self.q_BD, owner, c.vectors, c.head[item])
        r, column = np.nonzero(self.settled[0] >= 0)
        owner, item = np.concatenate([r, owner]), np.concatenate([self.settled[0][r, column], item])
        self.settled = best(owner, item, np.concatenate([self.settled[1][r, column], keys]), self.rows, self.k)
        full = self.settled[0][:, -1] >= 0
        self.floor = np.where(full, np.maximum(self.floor, self.settled[1][:, -1] / GRID - 0.5 / GRID), self.floor)
        self.pool, self.held = [NOTHING], 0
