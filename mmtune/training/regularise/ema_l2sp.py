"""Weight EMA (an exponential moving average of the weights) and L2-SP (a pull towards the starting weights)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor, nn

TensorOfParameter: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(parameter, a tensor that belongs to it) -> that tensor, sharded or gathered."""


class EmaState(TypedDict):
    """The EMA in a checkpoint: mean, one tensor a parameter; steps, optimizer steps taken."""

    mean: list[Tensor]
    steps: int


class EmaL2SP:
    """Weight EMA (Polyak & Juditsky 1992) and L2-SP (arXiv 1802.01483) of the parameters that learn.

    ema_decay d: after each step mean = d * mean + (1 - d) * weights, with d at most (1 + step) / (10 + step), so that a short
    run's mean is not dominated by its start; None: no EMA. l2_start: after each step the weights move by lr * l2_start of the
    distance back to the start (decoupled, as AdamW's decay); 0: they do not.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ema_decay: float | None, l2_start: float):
        self.parameters = list(parameters)
        self.ema_decay, self.l2_start, self.steps = ema_decay, l2_start, 0
        self.mean = [p.detach().clone() for p in self.parameters] if ema_decay else []
        self.start = [p.detach().clone() for p in self.parameters] if l2_start else []

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """Call after each optimizer step, with the step's learning rate."""
        weights = [p.detach() for p in self.parameters]
        if self.start:
            torch._foreach_lerp_(weights, self.start, min(lr * self.l2_start, 1.0))
        if self.ema_decay:
            self.steps += 1
            torch._foreach_lerp_(self.mean, weights, 1 - min(self.ema_decay, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the model's weights by their EMA, for good; without EMA nothing changes."""
        for p, m in zip(self.parameters, self.mean, strict=False):
            p.copy_(m)

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within, the model has the EMA of its weights (if there is one)."""
        current = [p.detach().clone() for p in self.parameters] if self.ema_decay else []
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, c in zip(self.parameters, current, strict=False):
                    p.copy_(c)

    def state_dict(self, gather: TensorOfParameter = lambda p, mean: mean) -> EmaState:
        """For a checkpoint; the start is known from the base. gather: what to save of a parameter's mean."""
        return {"mean": [gather(p, m) for p, m in zip(self.parameters, self.mean, strict=False)], "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: EmaState, shard: TensorOfParameter = lambda p, mean: mean) -> None:
        """Restore `state_dict`. shard: a parameter's mean from what was saved."""
        mean = state["mean"]
        assert len(mean) == len(self.mean)
        self.mean = [shard(p, saved).to(p.device, copy=True) for p, saved in zip(self.parameters, mean, strict=False)]
        self.steps = state["steps"]
