"""Low-precision products with a proved error, for a scan that only has to tell what cannot be among the best.

A grid lays the candidates out in chunks and turns a block of queries and a chunk into one matrix product: for accumulators
[B, n], |unit_b * accumulator + shift_b - q_b . c| <= eps_b for every candidate c of the chunk. Scores themselves are computed
elsewhere, exactly.
"""

import functools
import tempfile
import threading
from dataclasses import dataclass

import numpy as np
import torch

from mmtune.relevance.mining_items import Items

SAMPLE = 4096


def slack(dim: int) -> float:
    """Bound of a float32 sum of `dim` products of unit vectors, in any order of addition (Higham 2002, 3.5)."""
    return (dim + 2) * 2.0**-24 * 1.01


@dataclass
class Queries:
    """A block of queries ready for products: operand [B, D]; the rest [B] float64."""

    operand: torch.Tensor
    unit: np.ndarray
    shift: np.ndarray
    length: np.ndarray
    lost: np.ndarray


def rotation(dim: int) -> torch.Tensor:
    """An orthogonal matrix float32 [D, D] that spreads any one dimension over all: random signs, then the DCT-II."""
    k, n = np.arange(dim), np.arange(dim)[:, None]
    dct = np.cos(np.pi * k * (2 * n + 1) / (2 * dim)) * np.where(k == 0, 1, np.sqrt(2)) / np.sqrt(dim)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], dim)
    return torch.from_numpy((signs[:, None] * dct).astype(np.float32))


class FloatGrid:
    """The product in float32: any device."""

    dtype = torch.float32
    low = float("-inf")

    def __init__(self, items: Items, chunk: int, device: str, room: int):
        self.items, self.chunk, self.device = items, chunk, device
        self.order = np.arange(len(items))
        self.place = self.order
        self._held: torch.Tensor | None = None
        if 4 * len(items) * items.dim <= room:
            self._held = torch.zeros(-(-len(items) // chunk), chunk, items.dim, device=device)
            for number in range(len(self._held)):
                self._read(number, self._held[number])
        self._own = threading.local()

    def candidates(self, number: int) -> torch.Tensor:
        """Chunk `number`, padded to [chunk, D] (what the padding holds is masked by the scan)."""
        if self._held is not None:
            return self._held[number]
        if not hasattr(self._own, "block"):
            self._own.block = torch.zeros(self.chunk, self.items.dim, device=self.device)
        self._read(number, self._own.block)
        return self._own.block

    def _read(self, number: int, block: torch.Tensor) -> None:
        part = self.items.take(np.arange(number * self.chunk, min(len(self.items), (number + 1) * self.chunk)))
        block[: len(part)] = torch.from_numpy(part).to(self.device)

    def queries(self, q_BD: np.ndarray) -> Queries:
        """The block of queries q_BD."""
        n = len(q_BD)
        return Queries(torch.from_numpy(q_BD).to(self.device), np.ones(n), np.zeros(n), np.ones(n), np.zeros(n))

    def bounds(self, q: Queries, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(unit [B], eps [B]) of chunk `number`."""
        return q.unit, np.full(len(q.unit), slack(self.items.dim))

    def product(self, q: Queries, number: int, out: torch.Tensor) -> None:
        """Accumulators into `out` [B, chunk]."""
        torch.mm(q.operand, self.candidates(number).t(), out=out)


class Int8Grid:
    """The product in 8-bit integers (VNNI and the like: 4 to 5 times float32's speed).

    Candidates are centred (a constant a query) and both sides turned by one rotation, so that no dimension stands
    out; candidates of like range share a chunk and its scale. Each vector is rounded, and the length of what rounding took
    away is measured. By Cauchy-Schwarz |q.(c-m) - q8.c8| <= |q| max|c - c8| + |q - q8| max|c8|.
    """

    dtype = torch.int32
    low = torch.iinfo(torch.int32).min

    def __init__(self, items: Items, chunk: int, device: str, room: int):
        self.items, self.chunk, dim = items, chunk, items.dim
        self.turn = rotation(dim)
        some = items.take(np.unique(np.linspace(0, len(items) - 1, SAMPLE).astype(np.int64)))
        self.mean = torch.from_numpy(some.mean(0, dtype=np.float64).astype(np.float32))
        self.order, n = np.arange(len(items)), len(items)
        top = np.empty(n, np.float32)  # filled in place: small results kept between large ones would fragment the heap
        for i in range(0, n, chunk):
            top[i : i + chunk] = self._turned(self.order[i : i + chunk]).abs_().amax(1).numpy()
        self.order = np.argsort(top, kind="stable")
        self.place = np.empty(n, np.int64)
        self.place[self.order] = np.arange(n)
        self.scale = np.maximum([top[self.order[i : i + chunk]].max() / 127 for i in range(0, n, chunk)], 1e-12)
        shape = (len(self.scale), chunk, dim)
        self._lost, self._length = np.zeros(len(self.scale)), np.zeros(len(self.scale))
        if n * dim <= room:
            self._codes = torch.zeros(shape, dtype=torch.int8)
        else:  # what does not fit lies in a file without a name, which the system pages (TMPDIR says where)
            self._codes = torch.from_numpy(np.memmap(tempfile.TemporaryFile(), np.int8, "w+", shape=shape))
        for number in range(len(self.scale)):
            self._round(number)

    def _turned(self, items: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self.items.take(items)).sub_(self.mean) @ self.turn

    def _round(self, number: int) -> None:
        """Fill chunk `number` and measure what rounding took away."""
        x, scale = self._turned(self.order[number * self.chunk : (number + 1) * self.chunk]), float(self.scale[number])
        rounded = (x / scale).round_().clamp_(-127, 127)
        self._codes[number, : len(x)] = rounded.to(torch.int8)
        rounded *= scale
        self._length[number] = float(rounded.norm(dim=1).max())
        self._lost[number] = float(x.sub_(rounded).norm(dim=1).max())

    def candidates(self, number: int) -> torch.Tensor:
        """Chunk `number`, padded with zero rows to [chunk, D] int8."""
        return self._codes[number]

    def queries(self, q_BD: np.ndarray) -> Queries:
        """The block of queries q_BD."""
        q = torch.from_numpy(q_BD)
        x = q @ self.turn
        scale = x.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        rounded = (x / scale).round()
        lost = (x - rounded * scale).norm(dim=1).double().numpy()
        shift = (q.double() @ self.mean.double()).numpy()
        return Queries(rounded.to(torch.int8), scale[:, 0].double().numpy(), shift, q.norm(dim=1).double().numpy(), lost)

    def bounds(self, q: Queries, number: int) -> tuple[np.ndarray, np.ndarray]:
        """(unit [B], eps [B]) of chunk `number`."""
        eps = q.length * self._lost[number] + q.lost * self._length[number]
        # the float32 rotation, centring and norms are themselves rounded
        return q.unit * self.scale[number], eps * 1.0001 + 6 * slack(self.items.dim)

    def product(self, q: Queries, number: int, out: torch.Tensor) -> None:
        """Accumulators into `out` [B, chunk] int32."""
        torch._int_mm(q.operand, self.candidates(number).t(), out=out)


@functools.cache
def int8_pays(dim: int) -> bool:
    """Whether this machine multiplies int8 matrices right, and has the instructions that make it worth while."""
    try:
        if not torch.cpu._is_vnni_supported():
            return False
        # extremes: a kernel that saturates 16-bit sums would be wrong here
        a, b = torch.full((64, dim), 127, dtype=torch.int8), torch.full((64, dim), -127, dtype=torch.int8)
        return bool((torch._int_mm(a, b.t()) == -16129 * dim).all()) and bool((torch._int_mm(a, a.t()) == 16129 * dim).all())
    except (RuntimeError, AttributeError):
        return False


def grid(items: Items, chunk: int, device: str, room: int) -> "FloatGrid | Int8Grid":
    """The faster grid for this machine; `room` bytes may hold prepared candidates. The answer is the same with either."""
    if device == "cpu" and len(items) >= 2 * chunk and int8_pays(items.dim):
        return Int8Grid(items, chunk, device, room)
    return FloatGrid(items, chunk, device, room)
