"""Apply torch.compile and activation checkpointing to the blocks of the towers during training."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch.utils.checkpoint import checkpoint, noop_context_fn

from mmtune.errors import RecipeError
from mmtune.model.tower_blocks import blocks
from mmtune.runtime.devices import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

Contexts: TypeAlias = tuple[AbstractContextManager[None], AbstractContextManager[None]]
"""The contexts of a block's forward pass and of its recomputation."""


@contextlib.contextmanager
def compiled_or_checkpointed(model: "Model", compiled: bool, recompute: bool) -> Iterator[None]:
    """Context manager that changes the blocks of every trained tower and restores them at the end.

    compiled: use torch.compile; all blocks of the same kind share one graph
    recompute: use activation checkpointing (Chen et al. 2016, arXiv 1604.06174). Only the inputs of a block are kept, and the
        block is run again, with the same dropout, in the backward pass

    Raises RecipeError for both on Apple's GPU.
    """
    contexts: Callable[[], Contexts] = noop_context_fn
    if recompute and model.device.type == "mps":
        if compiled:
            raise RecipeError("train.recompute: on Apple's GPU it does not work with train.compile; leave one of the two out")
        contexts = functools.partial(same_random_numbers, model.device)
    learning = [
        block
        for tower in model.towers.values()
        for block in (blocks(tower.modules) if compiled or recompute else [])
        if any(p.requires_grad for p in block.parameters())
    ]
    # A wrapper module would rename the parameters in the state dict, so the block's own `forward` is replaced.
    before = [vars(block).get("forward") for block in learning]
    for block in learning:
        if recompute:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
        if compiled:
            block.compile()
    try:
        yield
    finally:
        for block, forward in zip(learning, before, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward
            block._compiled_call_impl = None  # undoes nn.Module.compile, which has no public inverse


def same_random_numbers(device: torch.device) -> Contexts:
    """Return the contexts of a block's forward pass and of its recomputation, in which the device's generator is in the same state.

    torch restores the generators of the CPU and of CUDA itself, but not that of Apple's GPU.
    """
    return contextlib.nullcontext(), _restored(device, get_rng_state(device))


@contextlib.contextmanager
def _restored(device: torch.device, state: torch.Tensor | None) -> Iterator[None]:
    now = get_rng_state(device)
    if state is not None:
        set_rng_state(device, state)
    try:
        yield
    finally:
        if now is not None:
            set_rng_state(device, now)
