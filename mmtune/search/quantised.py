"""Low-precision products with a proved error, for a scan that only has to rule out what cannot be among the best.

A grid lays the candidates out in chunks and turns a block of queries and a chunk into one matrix product: for accumulators
[B, n], |step_b * accumulator + shift_b - q_b . c| <= error_b for every candidate c of the chunk. The scores themselves are
computed elsewhere, exactly.
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
"""Candidates that the mean is estimated on."""


def float32_error(dim: int) -> float:
    """Bound of a float32 sum of `dim` products of unit vectors, in any order of addition (Higham 2002, 3.5)."""
    return (dim + 2) * 2.0**-24 * 1.01


@dataclass
class QueryBlock:
    """A block of queries ready for products: operand [B, D]; the rest float64 [B].

    step: score of one unit of the accumulator; shift: score that is added; length: norm of the query; rounding: norm of its
    rounding error.
    """

    operand: torch.Tensor
    step: np.ndarray
    shift: np.ndarray
    length: np.ndarray
    rounding: np.ndarray


def rotation(dim: int) -> torch.Tensor:
    """An orthogonal matrix float32 [D, D] that spreads any one dimension over all: random signs, then the DCT-II."""
    dct = scipy.fft.dct(np.eye(dim), norm="ortho", axis=1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], dim)
    return torch.from_numpy((signs[:, None] * dct).astype(np.float32))


class FloatGrid:
    """The product in float32, on any device.

    order int64 [N]: the candidates in the order in which chunks hold them; position: its inverse; low: an accumulator below
    every score. prepared_bytes: memory that may hold candidates on the device.
    """

    dtype = torch.float32
    low = float("-inf")

    def __init__(self, candidates: Candidates, chunk: int, device: str, prepared_bytes: int):
        self.vectors, self.chunk, self.device = candidates, chunk, device
        self.size, self.dim = candidates.shape
        self.order = np.arange(self.size)
        self.position = self.order
        self._prepared: torch.Tensor | None = None
        # an array in CPU memory needs no copy
        self._in_place = device == "cpu" and isinstance(candidates, np.ndarray) and candidates.flags.writeable
        if not self._in_place and 4 * self.size * self.dim <= prepared_bytes:
            self._prepared = torch.zeros(-(-self.size // chunk), chunk, self.dim, device=device)
            for number in range(len(self._prepared)):
                self._read(number, self._prepared[number])
        self._buffers = threading.local()

    def candidates(self, number: int) -> torch.Tensor:
        """Chunk `number`, padded to [chunk, D] (the scan masks the padding, whatever it holds)."""
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
        """A block of queries [B, D], ready for products."""
        n = len(q_BD)
        return QueryBlock(torch.from_numpy(q_BD).to(self.device), np.ones(n), np.zeros(n), np.ones(n), np.zeros(n))

    def bounds(self, q: QueryBlock, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(step [B], error bound [B]) of chunk `number`."""
        return q.step, np.full(len(q.step), float32_error(self.dim))

    def product(self, q: QueryBlock, number: int, out: torch.Tensor) -> None:
        """Accumulators into `out` [B, chunk]."""
        torch.mm(q.operand, self.candidates(number).t(), out=out)


class Int8Grid:
    """The product in 8-bit integers (VNNI and the like: 4 to 5 times float32's speed).

    The mean is subtracted from the candidates (which shifts a query's scores by a constant), and both sides are multiplied by
    one rotation, so that no dimension dominates. Candidates of similar range share a chunk and its scale. Each vector is
    rounded, and the norm of the rounding error is measured. By Cauchy-Schwarz |q.(c-m) - q8.c8| <= |q| max|c - c8| +
    |q - q8| max|c8|.
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
        else:  # too large for the memory: an unnamed file in TMPDIR, which the system pages
            self._codes = torch.from_numpy(np.memmap(tempfile.TemporaryFile(), np.int8, "w+", shape=shape))
        for number in range(len(self.scale)):
            self._round(number)

    def _rotated(self, candidates: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.vectors[candidates]).sub_(self.mean) @ self.rotation

    def _round(self, number: int) -> None:
        """Fill chunk `number` and measure its rounding errors."""
        x, scale = self._rotated(self.order[number * self.chunk : (number + 1) * self.chunk]), float(self.scale[number])
        rounded = (x / scale).round_().clamp_(-127, 127)
        self._codes[number, : len(x)] = rounded.to(torch.int8)
        rounded *= scale
        self._length[number] = float(rounded.norm(dim=1).max())
        self._rounding[number] = float(x.sub_(rounded).norm(dim=1).max())

    def candidates(self, number: int) -> torch.Tensor:
        """Chunk `number`, padded with zero rows to [chunk, D] int8."""
        return self._codes[number]

    def queries(self, q_BD: np.ndarray) -> QueryBlock:
        """A block of queries [B, D], ready for products."""
        q = torch.from_numpy(q_BD)
        x = q @ self.rotation
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        rounded = (x / scale).round()
        rounding = (x - rounded * scale).norm(dim=1).double().numpy()
        shift = (q.double() @ self.mean.double()).numpy()
        length = q.norm(dim=1).double().numpy()
        return QueryBlock(rounded.to(torch.int8), scale[:, 0].double().numpy(), shift, length, rounding)

    def bounds(self, q: QueryBlock, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(step [B], error bound [B]) of chunk `number`."""
        error = q.length * self._rounding[number] + q.rounding * self._length[number]
        # the float32 rotation, centring and norms are themselves rounded
        return q.step * self.scale[number], error * 1.0001 + 6 * float32_error(self.dim)

    def product(self, q: QueryBlock, number: int, out: torch.Tensor) -> None:
        """Accumulators into `out` [B, chunk] int32."""
        torch._int_mm(q.operand, self.candidates(number).t(), out=out)


@functools.cache
def int8_is_faster(dim: int) -> bool:
    """Whether this machine has fast instructions for int8 matrix products, and computes them correctly."""
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        # extreme values: a kernel that saturates 16-bit sums would be wrong here
        a, b = torch.full((64, dim), 127, dtype=torch.int8), torch.full((64, dim), -127, dtype=torch.int8)
        return bool((torch._int_mm(a, b.t()) == -16129 * dim).all()) and bool((torch._int_mm(a, a.t()) == 16129 * dim).all())
    except (RuntimeError, AttributeError):
        return False


def choose_grid(candidates: Candidates, chunk: int, device: str, prepared_bytes: int) -> "FloatGrid | Int8Grid":
    """The faster grid for this machine; `prepared_bytes` may hold prepared candidates. Results are the same with either."""
    if device == "cpu" and len(candidates) >= 2 * chunk and int8_is_faster(candidates.shape[1]):
        return Int8Grid(candidates, chunk, device, prepared_bytes)
    return FloatGrid(candidates, chunk, device, prepared_bytes)
