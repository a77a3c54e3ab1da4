"""Let augmentation libraries draw from the random generator of a training row instead of the process's global ones.

torchvision draws from torch's global generator, audiomentations from those of `random` and numpy. Seeding these for a row would disturb
the training's own draws (dropout), and would not be safe with several threads. Here nothing global is seeded, read or locked: the
generators are local to the thread. A library called with generators seeded by s returns what it returns after the global ones were seeded by s.
"""

import random
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch.overrides import TorchFunctionMode


@cache
def _torch_mode() -> "type[TorchFunctionMode]":
    import torch
    from torch.overrides import TorchFunctionMode

    drawing = {
        *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.multinomial, torch.normal, torch.bernoulli),
        torch._sample_dirichlet,
        *(
            torch.Tensor.uniform_,
            torch.Tensor.normal_,
            torch.Tensor.random_,
            torch.Tensor.exponential_,
            torch.Tensor.bernoulli_,
        ),
    }
    like = {torch.rand_like: torch.Tensor.uniform_, torch.randn_like: torch.Tensor.normal_}

    class SeededTorch(TorchFunctionMode):
        """Adds `generator` to every call of torch that draws random numbers. Such a mode acts on the calling thread alone."""

        def __init__(self, seed: int):
            super().__init__()
            self.generator = torch.Generator().manual_seed(seed)

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's signature
            kwargs = kwargs or {}
            if func in like:
                return like[func](torch.empty_like(*args, **kwargs), generator=self.generator)
            if func in drawing:
                kwargs = {**kwargs, "generator": self.generator}
            return func(*args, **kwargs)

    return SeededTorch


def seeded_torch(seed: int) -> "TorchFunctionMode":
    """A context in which this thread's calls of torch on the CPU draw from a generator seeded by `seed`."""
    return _torch_mode()(seed)  # type: ignore[call-arg]  # its subclass takes the seed


_ROW = threading.local()
"""`python` and `numpy`: the generators of the row that this thread augments; without these attributes, the global ones are used."""


class _Python(types.ModuleType):
    """Stands for the module `random` in the modules of audiomentations."""

    def __getattr__(self, name: str) -> object:
        return getattr(getattr(_ROW, "python", random), name)


class _NumpyRandom(types.ModuleType):
    """Stands for `numpy.random` in the modules of audiomentations."""

    def __getattr__(self, name: str) -> object:
        return getattr(getattr(_ROW, "numpy", np.random), name)


class _Numpy(types.ModuleType):
    """Stands for `numpy` in the modules of audiomentations: all of numpy, with another `random`."""

    random = _NumpyRandom("numpy.random")

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)


_STAND_INS: dict[int, types.ModuleType] = {id(random): _Python("random"), id(np): _Numpy("numpy")}


def draw_from_rows(package: str) -> None:
    """Make the loaded modules of `package` draw from the generators of `seeded_row`. Outside of it they draw from the global ones,
    as before, so that other users of the package in this process see no difference."""
    for name, module in list(sys.modules.items()):
        if name == package or name.startswith(f"{package}."):
            for attribute, value in list(vars(module).items()):
                if (stand_in := _STAND_INS.get(id(value))) is not None:
                    setattr(module, attribute, stand_in)


@contextmanager
def seeded_row(seed: int) -> Iterator[None]:
    """A context in which packages given to `draw_from_rows` draw, in this thread, from generators seeded by `seed` (32 bits)."""
    before = dict(vars(_ROW))
    _ROW.python, _ROW.numpy = random.Random(seed), np.random.RandomState(seed)
    try:
        yield
    finally:
        vars(_ROW).clear()
        vars(_ROW).update(before)
