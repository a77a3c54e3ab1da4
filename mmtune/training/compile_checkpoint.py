"""Apply torch.compile and activation checkpointing to the blocks of the towers during training."""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.checkpoint import checkpoint

from mmtune.model.tower_blocks import blocks

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


@contextlib.contextmanager
def compiled_or_checkpointed(model: "Model", compiled: bool, recompute: bool) -> Iterator[None]:
    """Context manager that changes the blocks of every trained tower and restores them at the end.

    compiled: use torch.compile; all blocks of the same kind share one graph
    recompute: use activation checkpointing (Chen et al. 2016, arXiv 1604.06174). Only the inputs of a block are kept, and the
        block is run again, with the same dropout, in the backward pass
    """
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
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
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
