"""Low-precision matrix products with a proven error bound, used by the blocked scan to rule candidates out.

A grid stores the candidates in chunks and multiplies a block of queries with a chunk in one matrix product. For the resulting
accumulators [B, n], |step_b * accumulator + shift_b - q_b . c| <= error_b holds for every query b and every candidate c of the
chunk. Exact scores are computed elsewhere (`mmtune.search.exact_scores`).
"""

import functools
import tempfile
import threading
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import scipy.fft
import torch

from mmtune.search.vectors import GatheredRows

Candidates: TypeAlias = np.ndarray | GatheredRows

MEAN_SAMPLE = 4096
"""Number of candidates from which their mean is estimated."""


def float32_error(dim: int) -> float:
    """Error bound of a float32 inner product of L2-normalised vectors of dimension `dim`, in any order of addition
    (Higham 2002, 3.5)."""
    return (dim + 2) * 2.0**-24 * 1.01


@dataclass
class QueryBlock:
    """A block of B queries, converted for matrix products. All arrays but `operand` are float64 [B].

    operand: [B, D], the queries in the grid's precision
    step: score per unit of the accumulator
    shift: constant to add to the score
    length: L2 norm of the query
    rounding: L2 norm of the query's rounding error
    """

    operand: torch.Tensor
    step: np.ndarray
    shift: np.ndarray
    length: np.ndarray
    rounding: np.ndarray


def rotation(dim: int) -> torch.Tensor:
    """An orthogonal matrix float32 [D, D] that spreads every dimension over all others: random signs, then the DCT-II."""
    dct = scipy.fft.dct(np.eye(dim), norm="ortho", axis=1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], dim)
    return torch.from_numpy((signs[:, None] * dct).astype(np.float32))


class FloatGrid:
    """Matrix products in float32, on any device.

    order: int64 [N], the candidates in the order in which the chunks store them
    position: int64 [N], the inverse of `order`
    low: an accumulator value below every score
    prepared_bytes: memory that copies of candidates may use on the device
    """

    dtype = torch.float32
    low = float("-inf")

    def __init__(self, candidates: Candidates, chunk: int, device: str, prepared_bytes: int):
        self.vectors, self.chunk, self.device = candidates, chunk, device
        self.size, self.dim = candidates.shape
        self.order = np.arange(self.size)
        self.position = self.order
        self._prepared: torch.Tensor | None = None
        # candidates already in CPU memory need no copy; torch.from_numpy warns about arrays that are not writable
        self._in_place = device == "cpu" and isinstance(candidates, np.ndarray) and candidates.flags.writeable
        if not self._in_place and 4 * self.size * self.dim <= prepared_bytes:
            self._prepared = torch.zeros(-(-self.size // chunk), chunk, self.dim, device=device)
            for number in range(len(self._prepared)):
                self._read(number, self._prepared[number])
        self._buffers = threading.local()

    def candidates(self, number: int) -> torch.Tensor:
        """Return chunk `number`, padded to [chunk, D]. The padding may hold anything: the scan masks it."""
        start, stop = number * self.chunk, (number + 1) * self.chunk
        if self._in_place and stop <= self.size:
            return torch.from_numpy(self.vectors[start:stop])
        if self._prepared is not None:
            return self._prepared[number]
        if not hasattr(self._buffers, "block"):
            self._buffers.block = torch.zeros(self.chunk, self.dim, device=self.device)
        self._read(number, self._buffers.block)
        return self._buffers.block

    def _read(self, number: int, block: torch.Tensor) -> None:
        part = self.vectors[number * self.chunk : min(self.size, (number + 1) * self.chunk)]
        block[: len(part)] = torch.from_numpy(np.array(part)).to(self.device)

    def queries(self, q_BD: np.ndarray) -> QueryBlock:
        """Convert a block of queries [B, D] for products."""
        n = len(q_BD)
        return QueryBlock(torch.from_numpy(q_BD).to(self.device), np.ones(n), np.zeros(n), np.ones(n), np.zeros(n))

    def bounds(self, q: QueryBlock, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (step [B], error bound [B]) of chunk `number`."""
        return q.step, np.full(len(q.step), float32_error(self.dim))

    def product(self, q: QueryBlock, number: int, out: torch.Tensor) -> None:
        """Write the accumulators [B, chunk] of chunk `number` into `out`."""
        torch.mm(q.operand, self.candidates(number).t(), out=out)


class Int8Grid:
    """Matrix products in 8-bit integers, 4 to 5 times as fast as float32 with VNNI or similar instructions.

    Three steps keep the rounding errors small. The mean m of the candidates is subtracted, which shifts all scores of a query
    by a constant. Queries and candidates are multiplied by one rotation, so that no dimension dominates. Candidates with
    similar largest elements share a chunk, because a chunk has one scale. The L2 norms of the rounding errors are measured.
    With q8 and c8 the rounded query and candidate, Cauchy-Schwarz gives the error bound
    |q.(c-m) - q8.c8| <= |q| max|c-m - c8| + |q - q8| max|c8|.
    """

    dtype = torch.int32
    low = torch.iinfo(torch.int32).min

    def __init__(self, candidates: Candidates, chunk: int, device: str, prepared_bytes: int):
        self.vectors, self.chunk = candidates, chunk
        n, dim = candidates.shape
        self.dim = dim
        self.rotation = rotation(dim)
        sample = candidates[np.unique(np.linspace(0, n - 1, MEAN_SAMPLE).astype(np.int64))]
        self.mean = torch.from_numpy(sample.mean(0, dtype=np.float64).astype(np.float32))
        self.order = np.arange(n)
        largest = np.empty(n, np.float32)  # filled in place: small arrays kept between large ones would fragment the heap
        for i in range(0, n, chunk):
            largest[i : i + chunk] = self._rotated(self.order[i : i + chunk]).abs_().amax(1).numpy()
        self.order = np.argsort(largest, kind="stable")
        self.position = np.empty(n, np.int64)
        self.position[self.order] = np.arange(n)
        self.scale = np.maximum([largest[self.order[i : i + chunk]].max() / 127 for i in range(0, n, chunk)], 1e-12)
        shape = (len(self.scale), chunk, dim)
        self._rounding, self._length = np.zeros(len(self.scale)), np.zeros(len(self.scale))
        if n * dim <= prepared_bytes:
            self._codes = torch.zeros(shape, dtype=torch.int8)
        else:  # too large for the memory limit: store them in an unnamed temporary file in TMPDIR
            self._codes = torch.from_numpy(np.memmap(tempfile.TemporaryFile(), np.int8, "w+", shape=shape))
        for number in range(len(self.scale)):
            self._round(number)

    def _rotated(self, candidates: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.vectors[candidates]).sub_(self.mean) @ self.rotation

    def _round(self, number: int) -> None:
        """Round the candidates of chunk `number` to int8, store them and measure their rounding errors."""
        x, scale = self._rotated(self.order[number * self.chunk : (number + 1) * self.chunk]), float(self.scale[number])
        rounded = (x / scale).round_().clamp_(-127, 127)
        self._codes[number, : len(x)] = rounded.to(torch.int8)
        rounded *= scale
        self._length[number] = float(rounded.norm(dim=1).max())
        self._rounding[number] = float(x.sub_(rounded).norm(dim=1).max())

    def candidates(self, number: int) -> torch.Tensor:
        """Return chunk `number`, int8, padded with zero rows to [chunk, D]."""
        return self._codes[number]

    def queries(self, q_BD: np.ndarray) -> QueryBlock:
        """Convert a block of queries [B, D] for products."""
        q = torch.from_numpy(q_BD)
        x = q @ self.rotation
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        rounded = (x / scale).round()
        rounding = (x - rounded * scale).norm(dim=1).double().numpy()
        shift = (q.double() @ self.mean.double()).numpy()
        length = q.norm(dim=1).double().numpy()
        return QueryBlock(rounded.to(torch.int8), scale[:, 0].double().numpy(), shift, length, rounding)

    def bounds(self, q: QueryBlock, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (step [B], error bound [B]) of chunk `number`."""
        error = q.length * self._rounding[number] + q.rounding * self._length[number]
        # the float32 rotation, mean subtraction and norms have rounding errors too
        return q.step * self.scale[number], error * 1.0001 + 6 * float32_error(self.dim)

    def product(self, q: QueryBlock, number: int, out: torch.Tensor) -> None:
        """Write the accumulators [B, chunk] int32 of chunk `number` into `out`."""
        torch._int_mm(q.operand, self.candidates(number).t(), out=out)


@functools.cache
def int8_is_faster(dim: int) -> bool:
    """Return whether this machine has fast instructions for int8 matrix products that also compute correctly."""
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        # products of extreme values: a kernel that saturates 16-bit partial sums gives wrong results
        a, b = torch.full((64, dim), 127, dtype=torch.int8), torch.full((64, dim), -127, dtype=torch.int8)
        return bool((torch._int_mm(a, b.t()) == -16129 * dim).all()) and bool((torch._int_mm(a, a.t()) == 16129 * dim).all())
    except (RuntimeError, AttributeError):
        return False


def choose_grid(candidates: Candidates, chunk: int, device: str, prepared_bytes: int) -> "FloatGrid | Int8Grid":
    """Return the faster grid for this machine; the search results are the same with both.

    prepared_bytes: memory that the grid may use for candidates in its precision
    """
    if device == "cpu" and len(candidates) >= 2 * chunk and int8_is_faster(candidates.shape[1]):
        return Int8Grid(candidates, chunk, device, prepared_bytes)
    return FloatGrid(candidates, chunk, device, prepared_bytes)
