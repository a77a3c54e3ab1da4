"""Apply several augmentations one after the other."""

import random
from collections.abc import Sequence

from mmtune.contracts import Augmentation, Signal


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
