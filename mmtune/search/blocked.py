"""Exact nearest candidates by a blocked scan: low-precision scores rule candidates out, exact cosines rank the rest.

For each block of queries the scan goes through the candidates in chunks. It keeps every candidate whose approximate score is
within twice the error bound of the k-th best score so far ("survivors"). From time to time it settles the survivors: it
computes their exact keys (`mmtune.search.exact_scores`) and keeps the best k. A candidate is dropped only if it is certain to
lie outside the top k. So the result equals that of the full score matrix, for any precision, block size or memory limit.
"""

import threading
from dataclasses import dataclass

import numpy as np
import torch

from mmtune.search.exact_scores import pair_keys
from mmtune.search.faiss_library import faiss_installed, import_faiss
from mmtune.search.pair_set import PairSet
from mmtune.search.parallel import worker_count
from mmtune.search.quantised import choose_grid, float32_error
from mmtune.search.tie_order import GRID, positions_by_query, top_k_of_pairs
from mmtune.search.vectors import GatheredRows, array_and_index

CHUNK = 4096
"""Number of candidates per matrix product."""
GROUP = 32
"""Number of neighbouring candidates in a group. The scan compares the maximum of each group first, to skip whole groups."""
MAX_NEAR = 1 << 17
"""Maximum number of groups read at once; a block of queries that exceeds it is halved."""

Survivors = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Four arrays [S]: query int16, candidate int32, upper bound of the score float32, float32 score (-inf if not yet computed)."""

NO_SURVIVORS: Survivors = (np.zeros(0, np.int16), np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.float32))


@dataclass
class Plan:
    """Sizes that keep the scan within its memory limit.

    block: queries per block
    survivors: maximum number of survivors held before they are settled
    prepared_bytes: memory for candidates stored in the scan's precision
    """

    block: int
    survivors: int
    prepared_bytes: int


def plan(memory_mb: int, dim: int, k: int, threads: int) -> Plan:
    """Divide the memory: half for prepared candidates, a quarter for accumulators (the low-precision
    products of a block of queries, before they are scaled), a quarter for survivors and sorting them.

    The two quarters are shared by the `threads` blocks that are searched at the same time.
    """
    memory = memory_mb * 2**20
    share = memory // 4 // threads
    block = int(min(1024, max(16, share // (CHUNK * 5 + dim * 16))))
    return Plan(block, int(max(4 * block * k, share // 128)), memory // 2)


def pair_products(a: np.ndarray, i: np.ndarray, b: np.ndarray, j: np.ndarray) -> np.ndarray:
    """float32 [P]: the inner products a[i] . b[j] of contiguous float32 arrays, within `float32_error` of the exact values."""
    out = np.empty(len(i), np.float32)
    if not len(i):
        return out
    if not faiss_installed():
        step = max(64, 2**18 // a.shape[1])
        for start in range(0, len(i), step):
            part = slice(start, start + step)
            np.einsum("pd,pd->p", a[i[part]], b[j[part]], out=out[part])
        return out
    faiss = import_faiss()
    i, j = np.ascontiguousarray(i, np.int64), np.ascontiguousarray(j, np.int64)
    pointer = faiss.swig_ptr
    faiss.pairwise_indexed_inner_product(a.shape[1], len(i), pointer(a), pointer(i), pointer(b), pointer(j), pointer(out))
    return out


def kth_largest(query: np.ndarray, values: np.ndarray, queries: int, k: int) -> np.ndarray:
    """float32 [queries]: the k-th largest of the `values` of each query, or -inf for a query with fewer than k values."""
    order, column, longest = positions_by_query(query, queries)
    width = max(longest, k)
    table = np.full((queries, width), -np.inf, np.float32)
    table[query[order], column] = values[order]
    table.partition(width - k, axis=1)
    return table[:, width - k]


class ExactSearch:
    """Find the k nearest candidates for blocks of queries, in the total order of `tie_order`. Thread-safe.

    candidates: [N, D], L2-normalised, numbered so that the smaller number wins a tie (see `tie_order`)
    memory_mb: working memory in MiB, in addition to the vectors
    k: number of candidates per query

    The attribute `block` is the maximum number of queries per call of `top`.
    """

    name = "exact"

    def __init__(self, candidates: np.ndarray | GatheredRows, memory_mb: int = 1024, device: str = "cpu", k: int = 64):
        self.candidates, self.k = candidates, k
        self.array, self.index = array_and_index(candidates)
        self.dim = candidates.shape[1]
        self.plan = plan(memory_mb, self.dim, k, worker_count(device))
        self.grid = choose_grid(candidates, CHUNK, device, self.plan.prepared_bytes)
        self.block, self.device = self.plan.block, device
        self._buffers = threading.local()

    def top(self, q_BD: np.ndarray, excluded: PairSet | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Search for queries q [B, D], B <= block: (candidates int64 [B, k], keys int32 [B, k]).

        excluded: pairs to leave out, such as known positives

        If a query has fewer than k candidates, the rest of its row is -1.
        """
        return _Scan(self, q_BD, excluded or PairSet()).run()

    def buffers(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return accumulators [rows, CHUNK] and their maxima by group, for reuse.

        Each thread keeps its own, because allocating fresh memory takes longer than the matrix product itself.
        """
        if not hasattr(self._buffers, "sums"):
            sizes = self.block * CHUNK, self.block * CHUNK // GROUP
            self._buffers.sums, self._buffers.tops = (torch.empty(n, dtype=self.grid.dtype, device=self.device) for n in sizes)
        sums, tops = self._buffers.sums[: rows * CHUNK], self._buffers.tops[: rows * CHUNK // GROUP]
        return sums.view(rows, CHUNK), tops.view(rows, CHUNK // GROUP)


class _Scan:
    """Searches one block of queries among all candidates.

    floor: float [B], a lower bound of the k-th best score of each query
    pool: the survivors not settled yet
    settled: (candidates, keys) [B, k], the best candidates among all that were settled
    """

    def __init__(self, search: ExactSearch, q_BD: np.ndarray, excluded: PairSet):
        self.search, self.q_BD, self.k, self.rows = search, q_BD, search.k, len(q_BD)
        self.queries = search.grid.queries(q_BD)
        position = search.grid.position
        at = position[excluded.candidate]
        order = np.argsort(at, kind="stable")
        self.excluded_at, self.excluded_query = at[order], excluded.query[order]
        self.rectangles = [(q, np.sort(position[members])) for q, members in excluded.rectangles]
        self.floor = np.full(self.rows, -np.inf)
        self.pool: list[Survivors] = [NO_SURVIVORS]
        self.held = 0
        self.settled = (np.full((self.rows, self.k), -1, np.int64), np.full((self.rows, self.k), -GRID, np.int32))

    def run(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (candidates, keys) [B, k] of the block."""
        n, grid = len(self.search.candidates), self.search.grid
        sums, tops = self.search.buffers(self.rows)
        for number in range(-(-n // CHUNK)):
            start = number * CHUNK
            grid.product(self.queries, number, sums)
            if start + CHUNK > n:
                sums[:, n - start :] = grid.low
            self._mask(sums, start)
            torch.amax(sums.view(self.rows, CHUNK // GROUP, GROUP), 2, out=tops)
            step, error = grid.bounds(self.queries, number)
            if number == 0 and CHUNK // GROUP >= self.k:
                # at least k candidates score as high as the k-th largest group maximum, so it is a lower bound
                kth = tops.topk(self.k, 1).values[:, -1].cpu().double().numpy()
                self.floor = np.where(kth > grid.low, step * kth + self.queries.shift - error, -np.inf)
            least = self._least(step, error)
            self._collect(sums, tops.cpu().numpy(), least, number, 0, self.rows)
            if number & (number + 1) == 0:  # after chunks 0, 1, 3, 7, ...: the floor changes ever less, so update it ever less
                self._raise_floor()
            if self.held > self.search.plan.survivors:
                self._settle()
        self._settle()
        return self.settled

    def _mask(self, sums: torch.Tensor, start: int) -> None:
        """Give the excluded pairs of one chunk the lowest score."""
        low, device = self.search.grid.low, sums.device
        a, b = np.searchsorted(self.excluded_at, [start, start + CHUNK])
        if b > a:
            rows, columns = self.excluded_query[a:b], self.excluded_at[a:b] - start
            sums[torch.from_numpy(rows).to(device), torch.from_numpy(columns).to(device)] = low
        for rows, at in self.rectangles:
            a, b = np.searchsorted(at, [start, start + CHUNK])
            if b > a:
                columns = torch.from_numpy(at[a:b] - start).to(device)
                sums[torch.from_numpy(rows).to(device)[:, None], columns[None, :]] = low

    def _least(self, step: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Return the smallest accumulator value per query [B] that may belong to a score at or above the floor.

        It is always above the value of masked pairs, so that these are never collected.
        """
        grid = self.search.grid
        least = (self.floor - error - self.queries.shift) / step
        if grid.dtype == torch.int32:
            return np.floor(np.clip(least, grid.low + 1, 2**31 - 1)).astype(np.int32)
        return np.maximum(np.nextafter(least.astype(np.float32), np.float32(-np.inf)), np.float32(-3e38))

    def _collect(self, sums: torch.Tensor, tops: np.ndarray, least: np.ndarray, number: int, first: int, stop: int) -> None:
        """Add the candidates of chunk `number` that reach `least` to the survivors, for queries first..stop-1."""
        b, g = np.divmod(np.flatnonzero(tops[first:stop] >= least[first:stop, None]), CHUNK // GROUP)
        if len(b) > MAX_NEAR and stop - first > 1:
            middle = (first + stop) // 2
            self._collect(sums, tops, least, number, first, middle)
            self._collect(sums, tops, least, number, middle, stop)
            return
        if not len(b):
            return
        b += first
        values = self._group(sums, b, g)
        at = np.flatnonzero(values >= least[b][:, None])
        pair, within = np.divmod(at, GROUP)
        query, value, at = b[pair], values.ravel()[at].astype(np.float64), g[pair] * GROUP + within + number * CHUNK
        step, error = self.search.grid.bounds(self.queries, number)
        # 3e-7 covers the rounding of the bound itself to float32
        upper = (step[query] * value + (self.queries.shift + error + 3e-7)[query]).astype(np.float32)
        candidate = self.search.grid.order[at].astype(np.int32)
        self.pool.append((query.astype(np.int16), candidate, upper, np.full(len(query), -np.inf, np.float32)))
        self.held += len(query)
        if self.held > self.search.plan.survivors:
            self._settle()

    def _group(self, sums: torch.Tensor, b: np.ndarray, g: np.ndarray) -> np.ndarray:
        """Return the accumulators [n, GROUP] of the groups numbered g [n] of queries b [n]."""
        groups, at = sums.view(-1, GROUP), b * (CHUNK // GROUP) + g
        if sums.device.type == "cpu":
            return groups.numpy()[at]
        return groups[torch.from_numpy(at).to(sums.device)].cpu().numpy()

    def _floors(self, query: np.ndarray) -> np.ndarray:
        """Return the floor of each pair's query as float32, rounded down."""
        return np.nextafter(self.floor.astype(np.float32), np.float32(-np.inf))[query]

    def _score(self, query: np.ndarray, candidate: np.ndarray, scores: np.ndarray, which: np.ndarray) -> None:
        """Compute the float32 scores of the survivors at positions `which`, in place."""
        rows = self.search.index[candidate[which]]
        scores[which] = pair_products(self.q_BD, query[which], self.search.array, rows)

    def _raise_floor(self) -> None:
        """Score the k most promising survivors of each query in float32, and raise the floor to the k-th best score."""
        query, candidate, upper, scores = (np.concatenate(x) for x in zip(*self.pool, strict=True))
        keep = np.flatnonzero(upper >= self._floors(query))
        query, candidate, upper, scores = query[keep], candidate[keep], upper[keep], scores[keep]
        leader = upper >= kth_largest(query, upper, self.rows, self.k)[query]
        self._score(query, candidate, scores, np.flatnonzero(leader & np.isneginf(scores)))
        reached = kth_largest(query, scores, self.rows, self.k) - float32_error(self.search.dim)
        self.floor = np.maximum(self.floor, reached)
        self.pool, self.held = [(query, candidate, upper, scores)], len(query)

    def _settle(self) -> None:
        """Compute the exact keys of all survivors that may still be among the best k; keep only the best k."""
        self._raise_floor()
        query, candidate, upper, scores = self.pool[0]
        self._score(query, candidate, scores, np.flatnonzero((upper >= self._floors(query)) & np.isneginf(scores)))
        bound = float32_error(self.search.dim)
        self.floor = np.maximum(self.floor, kth_largest(query, scores, self.rows, self.k) - bound)
        keep = scores >= self._floors(query) - np.float32(1.01 * (bound + 1.0 / GRID))
        query, candidate = query[keep], candidate[keep]
        keys = pair_keys(self.q_BD, self.search.candidates, query, candidate)
        row, column = np.nonzero(self.settled[0] >= 0)
        query, candidate = np.concatenate([row, query]), np.concatenate([self.settled[0][row, column], candidate])
        keys = np.concatenate([self.settled[1][row, column], keys])
        self.settled = top_k_of_pairs(query, candidate, keys, self.rows, self.k)
        full = self.settled[0][:, -1] >= 0
        self.floor = np.where(full, np.maximum(self.floor, self.settled[1][:, -1] / GRID - 0.5 / GRID), self.floor)
        self.pool, self.held = [NO_SURVIVORS], 0
