"""Two ways not to wander off while training: a running mean of the weights, and a pull towards where they started."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

Change = Callable[[Tensor, Tensor], Tensor]


class Steady:
    """EMA (Polyak & Juditsky 1992) and L2 to the start (L2-SP, arXiv 1802.01483) of the parameters that learn.

    ema d: after each step mean = d * mean + (1 - d) * weights, d at most (1 + step) / (10 + step), so a short run's mean is
    not its start. l2: after each step weights move by lr * l2 of the way back (decoupled, as AdamW's decay). Off: nothing.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ema: float | None, l2: float):
        self.parameters = list(parameters)
        self.ema, self.l2, self.steps = ema, l2, 0
        self.mean = [p.detach().clone() for p in self.parameters] if ema else []
        self.start = [p.detach().clone() for p in self.parameters] if l2 else []

    @torch.no_grad()
    def after_step(self, lr: float) -> None:
        """Call once an optimizer step, with the step's learning rate."""
        weights = [p.detach() for p in self.parameters]
        if self.start:
            torch._foreach_lerp_(weights, self.start, min(lr * self.l2, 1.0))
        if self.ema:
            self.steps += 1
            torch._foreach_lerp_(self.mean, weights, 1 - min(self.ema, (1 + self.steps) / (10 + self.steps)))

    @torch.no_grad()
    def use_mean(self) -> None:
        """Put the mean into the model, for good."""
        for p, m in zip(self.parameters, self.mean, strict=False):
            p.copy_(m)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model has the mean's weights (if there is one)."""
        kept = [p.detach().clone() for p in self.parameters] if self.ema else []
        self.use_mean()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, k in zip(self.parameters, kept, strict=False):
                    p.copy_(k)

    def state(self, joined: Change = lambda p, mean: mean) -> dict[str, list[Tensor] | int]:
        """For a checkpoint; the start is known from the base. joined(parameter, its mean): what to save of it."""
        return {"mean": [joined(p, m) for p, m in zip(self.parameters, self.mean, strict=False)], "steps": self.steps}

    @torch.no_grad()
    def load(self, state: dict[str, list[Tensor] | int], part: Change = lambda p, mean: mean) -> None:
        """Undo `state`. part(parameter, what was saved): its mean."""
        mean = state["mean"]
        assert isinstance(mean, list) and len(mean) == len(self.mean)
        self.mean = [part(p, saved).to(p.device, copy=True) for p, saved in zip(self.parameters, mean, strict=False)]
        self.steps = int(state["steps"])  # type: ignore[arg-type]
