"""Fully sharded data parallelism of the towers' blocks (FSDP2, arXiv 2304.11277; torch's `fully_shard`): each process holds a
shard of their weights, gradients and optimizer state, and all of a block's weights only while the block runs.

`fully_shard` changes a module for good, so it gets a copy of each block, which replaces the block while training runs. The
block itself keeps its parameters, whose data become the shards: the process's rows of the weight, in the memory that the copy
works on. The optimizer, the weight EMA and weight decay see plain, shorter parameters; code that needs the unsharded model
(validation, mining, a checkpoint, the artifact) runs within `full_weights`, which costs every process the memory of all
weights for that long. Parameters outside blocks (embeddings, heads, logit scales) are replicated, their gradients summed in
`shared_step`. Weights are communicated in float32; with bf16, autocast's own copies of them exist until the backward pass, 2
bytes a weight, in every process.
"""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mmtune.errors import RecipeError
from mmtune.runtime.distributed import Processes
from mmtune.training.tuning.layers import blocks

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from mmtune.model.dual_encoder import Model

OptimizerState = dict[str, Any]
"""What `torch.optim.Optimizer.state_dict` returns."""


class ShardedBlocks:
    """The blocks of `model` sharded among `processes`; with `enabled` False, or one process, nothing is sharded and every
    method is a no-op.

    Every method but `is_shard` is collective: all processes call it at the same point. RecipeError where no block can be
    sharded.
    """

    def __init__(self, model: "Model", processes: Processes, enabled: bool = True) -> None:
        self.processes = processes
        self._replaced: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []  # parent, name, block, its sharded copy
        self._shards: dict[int, tuple[nn.Parameter, DTensor]] = {}  # id -> a block's parameter, the copy's DTensor
        self._open_contexts = 0  # nested `full_weights`
        if enabled and not processes.is_single:
            self._shard(model)

    @torch.no_grad()
    def _shard(self, model: "Model") -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, share_comm_ctx

        mesh = init_device_mesh(model.device.type, (self.processes.world_size,))
        copies: dict[int, Any] = {}
        for block in _shardable_blocks(model):
            sharded: Any = fully_shard(_copy_of_block(block), mesh=mesh, reshard_after_forward=True)
            sharded.set_gradient_divide_factor(1.0)  # the loss is that of the whole batch: gradients are summed
            sharded.set_force_sum_reduction_for_comms(True)  # gloo supports no other
            copies[id(block)] = sharded
            for p, shard in zip(block.parameters(), sharded.parameters(), strict=True):
                p.data = shard.to_local()
                self._shards[id(p)] = p, shard
        share_comm_ctx(list(copies.values()))  # else each keeps its last gradient's buffer until the backward pass is over
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if id(child) in copies:
                    self._replaced.append((parent, name, child, copies[id(child)]))
        self._use_copies(True)

    def is_shard(self, p: Tensor) -> bool:
        """Whether `p` is the shard of a weight, so that its gradient is summed over processes already."""
        return id(p) in self._shards

    def zero_grad(self) -> None:
        """Call together with the optimizer's `zero_grad`."""
        for _, shard in self._shards.values():
            shard.grad = None

    def collect_gradients(self) -> None:
        """Call after the backward passes: each parameter gets its shard of the summed gradient, or None where there is none."""
        for p, shard in self._shards.values():
            grad: Any = shard.grad
            p.grad = None if grad is None else grad.to_local()

    def clip_grad_norm(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_` over the shards of all processes; returns the norm."""
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
        """Within, the model is a plain one with all weights on every process; write_back: changes to them are kept."""
        self._gather()
        try:
            yield
        finally:
            self._open_contexts -= 1
            if not self._open_contexts:
                self._release(write_back)

    def unshard(self) -> None:
        """Make the model a plain one for good."""
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
        """The whole of a tensor of which each process has the rows of its shard `p`: on the CPU, on rank 0 only (the others get
        no rows). A tensor of a parameter that is not sharded is returned unchanged."""
        if not self.is_shard(p):
            return tensor
        gathered = self.processes.gather(tensor, self._shards[id(p)][1].shape[0])
        return gathered.cpu() if self.processes.is_main_process else gathered[:0].clone()  # a slice would keep all of it

    def local_rows(self, p: Tensor, tensor: Tensor) -> Tensor:
        """The inverse of `full_tensor`, from the whole tensor."""
        return tensor[self.processes.local_slice(len(tensor))].clone() if self.is_shard(p) else tensor


def map_moments(
    state: OptimizerState, parameters: Sequence[Tensor], function: Callable[[Tensor, Tensor], Tensor]
) -> OptimizerState:
    """An optimizer's state dict with `function(parameter, tensor)` in place of every tensor of the parameter's shape."""
    moments = {
        i: {k: function(parameters[i], v) if isinstance(v, Tensor) and v.ndim else v for k, v in values.items()}
        for i, values in state["state"].items()
    }
    return {**state, "state": moments}


def _shardable_blocks(model: "Model") -> list[nn.Module]:
    """The towers' blocks whose parameters are floating-point, have an axis, and belong to no other module."""
    candidates = {id(b): b for t in model.towers.values() for b in blocks(t.modules)}
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    shardable = []
    for block in candidates.values():
        named = list(block.named_parameters(remove_duplicate=False))
        if any(not p.is_floating_point() for _, p in named):
            raise RecipeError("train.shard: weights in 4 bits (qlora) cannot be cut; use how: lora, or train.shard=false")
        own_uses = Counter(id(p) for _, p in named)
        if own_uses and all(uses[i] == n for i, n in own_uses.items()) and all(p.ndim for _, p in named):
            shardable.append(block)
    if not shardable:
        raise RecipeError("train.shard: the towers of this model have no blocks that could be cut; set train.shard=false")
    return shardable


def _copy_of_block(block: nn.Module) -> nn.Module:
    """A copy with parameters of its own. Shared with the original: buffers (running statistics), and the configuration that
    transformers' layers read while they run, which is changed for the whole model."""
    shared: list[Any] = [*block.buffers(), *(m.config for m in block.modules() if hasattr(m, "config"))]
    copied = copy.deepcopy(block, {id(x): x for x in shared})
    for p in copied.parameters():
        p.data = p.data.contiguous()
    return copied
