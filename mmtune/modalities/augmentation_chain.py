"""Apply several augmentations one after the other, and one with a probability."""

import random
from collections.abc import Sequence

from mmtune.contracts import Augmentation, Signal
from mmtune.errors import RecipeError


class AugmentationChain:
    """An augmentation that applies several augmentations in order.

    Its `zoom` is the product of their zooms (see `contracts.Augmentation`).
    """

    def __init__(self, steps: Sequence[Augmentation]):
        self.steps = list(steps)
        self.zoom = 1.0
        for step in self.steps:
            self.zoom *= float(getattr(step, "zoom", 1.0))

    def __call__(self, signal: Signal, rng: random.Random) -> Signal:
        for step in self.steps:
            signal = step(signal, rng)
        return signal


class AugmentationStep:
    """Apply the augmentation `step` with probability `p`. Its errors start with the recipe key `key`."""

    def __init__(self, step: Augmentation, p: float, key: str):
        self.step, self.p, self.key = step, p, key
        self.zoom = float(getattr(step, "zoom", 1.0))

    def __call__(self, signal: Signal, rng: random.Random) -> Signal:
        if self.p < 1 and rng.random() >= self.p:
            return signal
        try:
            return self.step(signal, rng)
        except RecipeError as e:
            raise RecipeError(f"{self.key}: {e}") from None
