"""Fully sharded data parallelism for the blocks of the towers (FSDP2, arXiv 2304.11277; torch's `fully_shard`).

Each process holds a shard of the blocks' weights, gradients and optimizer state. It has all weights of a block only while that
block runs.

`fully_shard` changes a module permanently. So it is applied to a copy of each block, and the copy replaces the block in the
model during training. The original block keeps its parameters, but their data become the shard of this process: some rows of
each weight, in the same memory that the copy uses. To the optimizer, the weight EMA and weight decay, these are ordinary
parameters with fewer rows.

Validation, mining, checkpoints and saving the artifact need the unsharded model. They run inside `full_weights`, during which
every process holds all weights in memory. Parameters outside blocks (embeddings, heads, logit scales) are replicated, and
`shared_step` sums their gradients. Weights are communicated in float32. With bf16, every process also keeps autocast's bf16
copies of all weights until the backward pass, 2 bytes per weight.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmtune.errors import RecipeError
from mmtune.model.tower_blocks import blocks
from mmtune.runtime.distributed import Processes

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from mmtune.model.dual_encoder import Model

OptimizerState = dict[str, Any]
"""The return value of `torch.optim.Optimizer.state_dict`."""


class ShardedBlocks:
    """Shards the blocks of `model` over `processes`.

    With `enabled=False`, or with a single process, nothing is sharded and every method does nothing. All methods except
    `is_shard` are collective: all processes must call them at the same point. Raises RecipeError if no block can be sharded.

    reduce_dtype: type in which the gradients of the blocks are sent and summed
    """

    def __init__(
        self, model: "Model", processes: Processes, enabled: bool = True, reduce_dtype: torch.dtype = torch.float32
    ) -> None:
        self.processes = processes
        self._replaced: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []  # (parent, name, block, its sharded copy)
        self._shards: dict[int, tuple[nn.Parameter, DTensor]] = {}  # {id: (parameter of a block, DTensor of the copy)}
        self._open_contexts = 0  # how many `full_weights` contexts are open; they can be nested
        if enabled and not processes.is_single:
            self._shard(model, reduce_dtype)

    @torch.no_grad()
    def _shard(self, model: "Model", reduce_dtype: torch.dtype) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, share_comm_ctx

        mesh = init_device_mesh(model.device.type, (self.processes.world_size,))
        policy = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
        copies: dict[int, Any] = {}
        for block in _shardable_blocks(model):
            sharded: Any = fully_shard(_copy_of_block(block), mesh=mesh, reshard_after_forward=True, mp_policy=policy)
            sharded.set_gradient_divide_factor(1.0)  # sum, not average: the loss is already that of the whole batch
            sharded.set_force_sum_reduction_for_comms(True)  # gloo supports only sums
            copies[id(block)] = sharded
            for p, shard in zip(block.parameters(), sharded.parameters(), strict=True):
                p.data = shard.to_local()
                self._shards[id(p)] = p, shard
        # Without a shared context, each block would keep the buffer of its last gradient until the backward pass ends.
        share_comm_ctx(list(copies.values()))
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if id(child) in copies:
                    self._replaced.append((parent, name, child, copies[id(child)]))
        self._use_copies(True)

    def is_shard(self, p: Tensor) -> bool:
        """Whether `p` is the shard of a weight. The gradient of a shard is already summed over processes."""
        return id(p) in self._shards

    def zero_grad(self) -> None:
        """Clear the gradients of the shards. Call it together with the optimizer's `zero_grad`."""
        for _, shard in self._shards.values():
            shard.grad = None

    def collect_gradients(self) -> None:
        """Give each parameter its shard of the summed gradient, or None if it has none. Call it after the backward passes."""
        for p, shard in self._shards.values():
            grad: Any = shard.grad
            p.grad = None if grad is None else grad.to_local()

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Same as `torch.nn.utils.clip_grad_norm_`, but with the norm over the shards of all processes. Returns the norm."""
        if not self._shards:
            return torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        learning = [p for p in parameters if p.grad is not None]
        squares = [
            torch.nn.utils.get_total_norm([p.grad for p in learning if p.grad is not None and self.is_shard(p) == s]).square()
            for s in (True, False)
        ]
        self.processes.all_reduce(squares[:1])
        norm = (squares[0] + squares[1]).sqrt()
        torch.nn.utils.clip_grads_with_norm_(learning, max_norm, norm)
        return norm

    # --- the unsharded model -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def full_weights(self, write_back: bool = False) -> Iterator[None]:
        """Context manager in which the model is unsharded, with all weights on every process.

        write_back: whether changes to the weights are kept
        """
        self._gather()
        try:
            yield
        finally:
            self._open_contexts -= 1
            if not self._open_contexts:
                self._release(write_back)

    def unshard(self) -> None:
        """Make the model unsharded permanently."""
        self._gather()
        self._replaced, self._shards = [], {}

    @torch.no_grad()
    def _gather(self) -> None:
        if not self._open_contexts:
            for p, shard in self._shards.values():
                p.grad = shard.grad = None
                p.data = self.processes.gather(shard.to_local(), shard.shape[0])
            self._use_copies(False)
        self._open_contexts += 1

    @torch.no_grad()
    def _release(self, write_back: bool) -> None:
        for p, shard in self._shards.values():
            local = shard.to_local()
            if write_back:
                local.copy_(self.local_rows(p, p.data))
            p.data = local
        self._use_copies(True)

    def _use_copies(self, sharded: bool) -> None:
        for parent, name, block, copy_of_block in self._replaced:
            parent._modules[name] = copy_of_block if sharded else block

    # --- tensors that belong to a shard: optimizer moments, EMA weights ----------------------------------------------

    def full_tensor(self, p: Tensor, tensor: Tensor) -> Tensor:
        """Gather a tensor that belongs to parameter `p`, of which each process has the rows of its shard.

        The result is on the CPU and complete on rank 0 only; on the other ranks it has no rows. If `p` is not sharded, `tensor`
        is returned unchanged.
        """
        if not self.is_shard(p):
            return tensor
        gathered = self.processes.gather(tensor, self._shards[id(p)][1].shape[0])
        # clone: a slice would keep the memory of the whole tensor
        return gathered.cpu() if self.processes.is_main_process else gathered[:0].clone()

    def local_rows(self, p: Tensor, tensor: Tensor) -> Tensor:
        """Return this process's rows of a complete tensor that belongs to parameter `p`: the inverse of `full_tensor`."""
        return tensor[self.processes.local_slice(len(tensor))].clone() if self.is_shard(p) else tensor


def map_moments(
    state: OptimizerState, parameters: Sequence[Tensor], function: Callable[[Tensor, Tensor], Tensor]
) -> OptimizerState:
    """Copy an optimizer's state dict, applying `function(parameter, tensor)` to every tensor in it except scalars."""
    moments = {
        i: {k: function(parameters[i], v) if isinstance(v, Tensor) and v.ndim else v for k, v in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": moments}


def _shardable_blocks(model: "Model") -> list[nn.Module]:
    """Return the blocks of the towers that can be sharded.

    Their parameters must not be scalars, and must not be shared with a module outside the block. Raises RecipeError for
    weights that are not floating-point (4-bit), and if there is no such block.
    """
    candidates = {id(b): b for t in model.towers.values() for b in blocks(t.modules)}
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    shardable = []
    for block in candidates.values():
        named = list(block.named_parameters(remove_duplicate=False))
        if any(not p.is_floating_point() for _, p in named):
            raise RecipeError("train.shard: 4-bit weights (qlora) cannot be sharded; use how: lora, or train.shard=false")
        own_uses = Counter(id(p) for _, p in named)
        if own_uses and all(uses[i] == n for i, n in own_uses.items()) and all(p.ndim for _, p in named):
            shardable.append(block)
    if not shardable:
        raise RecipeError("train.shard: the towers of this model have no blocks that can be sharded; set train.shard=false")
    return shardable


def _copy_of_block(block: nn.Module) -> nn.Module:
    """Copy a block with its parameters.

    The copy shares two things with the original: the buffers (running statistics), and the configuration objects that
    transformers' layers read while they run, because the configuration is changed for the whole model.
    """
    shared: list[Any] = [*block.buffers(), *(m.config for m in block.modules() if hasattr(m, "config"))]
    copied = copy.deepcopy(block, {id(x): x for x in shared})
    for p in copied.parameters():
        p.data = p.data.contiguous()
    return copied
