"""Blocks cut among processes (FSDP2, arXiv 2304.11277; torch's `fully_shard`): each holds a share of their weights, gradients
and optimizer state, and all of a block's weights only while the block runs.

`fully_shard` changes a module for good, so what it gets is a twin of each block, which stands in the block's place while
training. The block itself keeps its parameters, and they become the pieces: their data are the process's rows of the weight,
memory that the twin works on. Optimizer, running mean and decay see plain, shorter parameters; whoever needs the model as it is
(validation, mining, a checkpoint, the artifact) asks for it `whole`, which costs every process all weights for that long.
What stands outside blocks (embeddings, heads, temperatures) every process has whole, its gradients added up by hand. Weights
travel in float32; in bf16 autocast's own copies of them live until the backward pass, 2 bytes a weight, in every process.
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
    from mmtune.model.dual_encoder import Model


class Sharded:
    """The blocks of `model` cut among `processes`; with `on` False, or one process, nothing is and every call is for free.

    Every method but `holds` is called by all processes at the same place. RecipeError where there is nothing to cut.
    """

    def __init__(self, model: "Model", processes: Processes, on: bool = True) -> None:
        self.processes = processes
        self._places: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []  # parent, name, block, its twin
        self._pieces: dict[int, tuple[nn.Parameter, Any]] = {}  # id -> a block's parameter, its twin's DTensor
        self._whole = 0  # how many ask for it now
        if on and not processes.is_single:
            self._cut(model)

    @torch.no_grad()
    def _cut(self, model: "Model") -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, share_comm_ctx

        mesh = init_device_mesh(model.device.type, (self.processes.world_size,))
        twins: dict[int, Any] = {}
        for block in _divisible(model):
            twin: Any = fully_shard(_twin(block), mesh=mesh, reshard_after_forward=True)
            twin.set_gradient_divide_factor(1.0)  # the loss is that of the whole batch: gradients add up
            twin.set_force_sum_reduction_for_comms(True)  # gloo knows no other
            twins[id(block)] = twin
            for p, cut in zip(block.parameters(), twin.parameters(), strict=True):
                p.data = cut.to_local()
                self._pieces[id(p)] = p, cut
        share_comm_ctx(list(twins.values()))  # else each keeps its last gradient's buffer until the backward pass is over
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if id(child) in twins:
                    self._places.append((parent, name, child, twins[id(child)]))
        self._stand(twins=True)

    def holds(self, p: Tensor) -> bool:
        """Whether `p` is a piece: a share of a weight, whose gradient is summed over processes already."""
        return id(p) in self._pieces

    def clear_gradients(self) -> None:
        """Beside the optimizer's zero_grad."""
        for _, cut in self._pieces.values():
            cut.grad = None

    def take_gradients(self) -> None:
        """After the backward passes: each piece gets its share of the gradient's sum, or none where nobody has any."""
        for p, cut in self._pieces.values():
            p.grad = None if cut.grad is None else cut.grad.to_local()

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
        """`torch.nn.utils.clip_grad_norm_` over all pieces of all processes; returns the norm."""
        if not self._pieces:
            return torch.nn.utils.clip_grad_norm_(parameters, limit)
        learn = [p for p in parameters if p.grad is not None]
        squares = [
            torch.nn.utils.get_total_norm([p.grad for p in learn if p.grad is not None and self.holds(p) == cut]).square()
            for cut in (True, False)
        ]
        self.processes.all_reduce(squares[:1])
        norm = (squares[0] + squares[1]).sqrt()
        torch.nn.utils.clip_grads_with_norm_(learn, limit, norm)
        return norm

    # --- the model as it is ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def whole(self, change: bool = False) -> Iterator[None]:
        """Within, the model is a plain one with all weights everywhere; `change`: what was written to them stays."""
        self._gather()
        try:
            yield
        finally:
            self._whole -= 1
            if not self._whole:
                self._let_go(change)

    def undo(self) -> None:
        """A plain model again, for good; pieces are no more."""
        self._gather()
        self._places, self._pieces = [], {}

    @torch.no_grad()
    def _gather(self) -> None:
        if not self._whole:
            for p, cut in self._pieces.values():
                p.grad = cut.grad = None
                p.data = self.processes.gather(cut.to_local(), cut.shape[0])
            self._stand(twins=False)
        self._whole += 1

    @torch.no_grad()
    def _let_go(self, change: bool) -> None:
        for p, cut in self._pieces.values():
            piece = cut.to_local()
            if change:
                piece.copy_(self.part(p, p.data))
            p.data = piece
        self._stand(twins=True)

    def _stand(self, twins: bool) -> None:
        for parent, name, block, twin in self._places:
            parent._modules[name] = twin if twins else block

    # --- what belongs to a piece: moments, means ---------------------------------------------------------------------

    def joined(self, p: Tensor, tensor: Tensor) -> Tensor:
        """All of a tensor of which each process has the part that goes with its piece `p`: on the CPU, at the first alone (the
        others get no rows). What is no piece's is given back as it is."""
        if not self.holds(p):
            return tensor
        found = self.processes.gather(tensor, self._pieces[id(p)][1].shape[0])
        return found.cpu() if self.processes.is_main_process else found[:0].clone()  # a slice would keep all of it

    def part(self, p: Tensor, tensor: Tensor) -> Tensor:
        """Undo `joined`, from the whole tensor."""
        return tensor[self.processes.local_slice(len(tensor))].clone() if self.holds(p) else tensor


def each_moment(
    state: dict[str, Any], parameters: Sequence[Tensor], change: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Any]:
    """An optimizer's state dict with `change(parameter, tensor)` of every tensor that has a parameter's shape."""
    moments = {
        i: {k: change(parameters[i], v) if isinstance(v, Tensor) and v.ndim else v for k, v in of.items()}
        for i, of in state["state"].items()
    }
    return {**state, "state": moments}


def _divisible(model: "Model") -> list[nn.Module]:
    """The towers' blocks that can stand apart: all their parameters are numbers with an axis, and theirs alone."""
    found = {id(b): b for t in model.towers.values() for b in blocks(t.modules)}
    everywhere = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    good = []
    for block in found.values():
        named = list(block.named_parameters(remove_duplicate=False))
        if any(not p.is_floating_point() for _, p in named):
            raise RecipeError("train.shard: weights in 4 bits (qlora) cannot be cut; use how: lora, or train.shard=false")
        here = Counter(id(p) for _, p in named)
        if here and all(everywhere[i] == n for i, n in here.items()) and all(p.ndim for _, p in named):
            good.append(block)
    if not good:
        raise RecipeError("train.shard: the towers of this model have no blocks that could be cut; set train.shard=false")
    return good


def _twin(block: nn.Module) -> nn.Module:
    """A copy with parameters of its own. Buffers are shared (running statistics), and the settings that transformers' layers
    read while they run, which are switched for the whole model."""
    shared: list[Any] = [*block.buffers(), *(m.config for m in block.modules() if hasattr(m, "config"))]
    twin = copy.deepcopy(block, {id(x): x for x in shared})
    for p in twin.parameters():
        p.data = p.data.contiguous()
    return twin
