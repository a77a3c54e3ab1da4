"""torch.compile and activation checkpointing of the towers' blocks, while they train."""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch.utils.checkpoint import checkpoint

from mmtune.training.tuning.layers import blocks

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


@contextlib.contextmanager
def compiled_or_checkpointed(model: "Model", compiled: bool, recompute: bool) -> Iterator[None]:
    """Within, the blocks of every tower that learns are changed; afterwards they are as before.

    compiled: torch.compile, one graph for all blocks of the same kind. recompute: activation checkpointing (Chen et al. 2016,
    arXiv 1604.06174): only a block's inputs are kept, the rest is computed again for the gradient, with the same dropout.
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
            block._compiled_call_impl = None
