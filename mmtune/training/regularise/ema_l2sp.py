"""Weight EMA (exponential moving average of the weights) and L2-SP (decay towards the initial weights)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor, nn

from mmtune.errors import ModelError

TensorOfParameter: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Maps (parameter, tensor that belongs to it) to this tensor in another form, sharded or gathered."""


class EmaState(TypedDict):
    """State of the weight EMA in a checkpoint.

    mean: averaged weights, one tensor per parameter
    steps: optimizer steps taken
    """

    mean: list[Tensor]
    steps: int


class EmaL2SP:
    """Weight EMA (Polyak & Juditsky 1992) and L2-SP (arXiv 1802.01483) of the model's trainable parameters.

    ema_decay: d in mean = d * mean + (1 - d) * weights, computed after each step; None: no EMA. d is limited to
        (1 + step) / (10 + step), so that the initial weights do not dominate the mean of a short run
    l2_start: after each step, each weight moves back towards its initial value by the fraction lr * l2_start of the distance;
        0: no L2-SP. It is decoupled from the gradient, like AdamW's weight decay
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ema_decay: float | None, l2_start: float):
        self.parameters = list(parameters)
        self.ema_decay, self.l2_start, self.steps = ema_decay, l2_start, 0
        self.mean = [p.detach().clone() for p in self.parameters] if ema_decay else []
        self.start = [p.detach().clone() for p in self.parameters] if l2_start else []

    @torch.no_grad()
    def update(self, lr: float) -> None:
        """Update the mean and apply L2-SP. Call it after each optimizer step, with the learning rate of the step."""
        weights = [p.detach() for p in self.parameters]
        if self.start:
            torch._foreach_lerp_(weights, self.start, min(lr * self.l2_start, 1.0))
        if self.ema_decay:
            self.steps += 1
            torch._foreach_lerp_(self.mean, weights, 1 - min(self.ema_decay, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the model's weights by their EMA permanently. Without EMA nothing changes."""
        for p, m in zip(self.parameters, self.mean, strict=False):
            p.copy_(m)

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Context manager in which the model has the EMA of its weights, if there is an EMA."""
        current = [p.detach().clone() for p in self.parameters] if self.ema_decay else []
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, c in zip(self.parameters, current, strict=False):
                    p.copy_(c)

    def state_dict(self, gather: TensorOfParameter = lambda p, mean: mean) -> EmaState:
        """Return the state for a checkpoint. The initial weights are not included, because a resumed run knows them.

        gather: converts a parameter's mean to the form in which it is saved
        """
        return {"mean": [gather(p, m) for p, m in zip(self.parameters, self.mean, strict=False)], "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: EmaState, shard: TensorOfParameter = lambda p, mean: mean) -> None:
        """Restore the state. shard: converts a saved mean to the form that the parameter has now."""
        mean = state["mean"]
        if len(mean) != len(self.mean):
            raise ModelError(
                f"the checkpoint has the EMA of {len(mean)} parameters, this version of mmtune averages {len(self.mean)} (not those of "
                "losses): finish this run with the version that started it, or start it again"
            )
        self.mean = [shard(p, saved).to(p.device, copy=True) for p, saved in zip(self.parameters, mean, strict=False)]
        self.steps = state["steps"]
