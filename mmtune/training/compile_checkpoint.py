"""Apply torch.compile and activation checkpointing to the blocks of the towers during training, and choose kernels and layouts."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, noop_context_fn

from mmtune.backbones.timm import MOST_CONVOLUTIONS_OF_A_TRANSFORMER
from mmtune.errors import RecipeError
from mmtune.model.tower_blocks import blocks
from mmtune.recipe.train_block import CompileMode
from mmtune.runtime.devices import get_rng_state, set_rng_state

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

Contexts: TypeAlias = tuple[AbstractContextManager[None], AbstractContextManager[None]]
"""The contexts of a block's forward pass and of its recomputation."""


@contextlib.contextmanager
def compiled_or_checkpointed(model: "Model", compiled: bool | CompileMode, recompute: bool) -> Iterator[None]:
    """Context manager that changes the blocks of every trained tower and restores them at the end.

    compiled: use torch.compile, with this mode; all blocks of the same kind share one graph. With CUDA graphs (`uses_cuda_graphs`)
        blocks in eval mode run without it, because each size of a batch would record graphs of its own
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
            block.compile(mode=None if compiled is True else compiled)
            call = block._compiled_call_impl
            if uses_cuda_graphs(compiled) and call is not None:
                block._compiled_call_impl = functools.partial(_compiled_in_training, block, call)
    try:
        yield
    finally:
        for block, forward in zip(learning, before, strict=True):
            vars(block).pop("forward", None)
            if forward is not None:
                block.forward = forward
            block._compiled_call_impl = None  # undoes nn.Module.compile, which has no public inverse


def uses_cuda_graphs(compiled: bool | CompileMode) -> bool:
    """Whether torch records CUDA graphs with this value of `train.compile`, on a GPU: few launches of kernels for each block."""
    return compiled in ("reduce-overhead", "max-autotune")


def begin_step(compiled: bool | CompileMode, device: torch.device) -> None:
    """Tell torch that a training step begins, and that the outputs of the graphs of the last step are not needed any more."""
    if device.type == "cuda" and uses_cuda_graphs(compiled):
        torch.compiler.cudagraph_mark_step_begin()


def _compiled_in_training(block: nn.Module, compiled: Callable[..., object], *args: object, **options: object) -> object:
    return compiled(*args, **options) if block.training else block._call_impl(*args, **options)


@contextlib.contextmanager
def fast_attention(model: "Model", low_precision: bool) -> Iterator[None]:
    """Context manager that selects, in each backbone, the attention implementation with the fastest backward pass.

    At the end it selects the implementation for inference again, so that embeddings do not change.
    """
    for backbone, _ in model.backbones:
        backbone.select_attention(model.device.type, low_precision)
    try:
        yield
    finally:
        for backbone, _ in model.backbones:
            backbone.select_attention("", False)


@contextlib.contextmanager
def channels_last_convolutions(model: "Model", wanted: bool) -> Iterator[None]:
    """Context manager in which the convolutional towers get their images in torch's memory format channels_last, if `wanted`.

    A convolution returns the format of its input, so it is enough to convert the input of a tower's first one. Tensor cores of GPUs compute in
    this format; in the other one torch converts the input and the output of each convolution. Weights stay as they are.

    Raises RecipeError if no tower is a convolutional network.
    """
    hooks = []
    if wanted:
        first = [c for tower in model.towers.values() if (c := first_convolution(tower.modules)) is not None]
        if not first:
            raise RecipeError("train.channels_last: no tower of this model is a convolutional network; leave the key out")
        hooks = [conv.register_forward_pre_hook(_in_channels_last) for conv in first]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def first_convolution(modules: Sequence[nn.Module]) -> nn.Module | None:
    """The first convolution of a convolutional network; None for other networks, as transformers, which have few convolutions."""
    found = [m for module in modules for m in module.modules() if isinstance(m, nn.Conv2d)]
    return found[0] if len(found) > MOST_CONVOLUTIONS_OF_A_TRANSFORMER else None


def _in_channels_last(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    x, *others = inputs
    return (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, *others)


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
