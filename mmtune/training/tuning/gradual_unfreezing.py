"""Gradual unfreezing (ULMFiT, Howard & Ruder 2018, arXiv 1801.06146): the layers of a tower start to train one after another.

At first only the head and the layers after the last block are trained. Then one more block joins at a time, from the last to the
first, and finally the layers before the blocks. What is frozen at a step depends on the number of the step alone, so a resumed
run continues with the same layers.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import nn

from mmtune.errors import RecipeError
from mmtune.recipe.tune_block import AnyTuning, FullTuning
from mmtune.training.tuning.layers import layer_numbers, set_frozen_to_eval

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


class GradualUnfreezing:
    """Freezes, during a step, the layers of `model` that do not train yet.

    start: {id of a parameter: number of epochs after which it starts to train}
    """

    def __init__(self, model: "Model", start: Mapping[int, float]) -> None:
        self.model = model
        self.start = [(p, start[id(p)]) for p in model.parameters() if start.get(id(p), 0.0) > 0 and p.requires_grad]

    def frozen(self, epochs: float) -> list[nn.Parameter]:
        """The parameters that do not train after this many epochs (with a fraction)."""
        return [p for p, start in self.start if epochs < start]

    @contextlib.contextmanager
    def freeze(self, epochs: float) -> Iterator[None]:
        """Context manager in which the parameters that do not train yet have no gradient, and their modules are in eval mode."""
        frozen = self.frozen(epochs)
        if not frozen:
            yield
            return
        training = [m for m in self.model.modules() if m.training]
        for p in frozen:
            p.requires_grad_(False)
        set_frozen_to_eval(self.model)
        try:
            yield
        finally:
            for p in frozen:
                p.requires_grad_(True)
            for m in training:
                m.training = True


def gradual_unfreezing(model: "Model", towers: Mapping[str, AnyTuning]) -> GradualUnfreezing:
    """Create the schedule of all towers that have `unfreeze_every`.

    Raises RecipeError if a tower has no blocks, or shares parameters with a tower that has another `unfreeze_every`.
    """
    start: dict[int, float] = {}
    seen: dict[int, tuple[str, float]] = {}
    for m, t in towers.items():
        every = t.unfreeze_every if isinstance(t, FullTuning) and t.unfreeze_every else 0.0
        layer, count = layer_numbers(model.towers[m].modules)
        if every and not count:
            raise RecipeError(f"tune.{m}.unfreeze_every: no blocks were found in this tower")
        top = max(layer.values(), default=0) if m not in model.heads else count + 1
        for i, number in layer.items():
            other, value = seen.setdefault(i, (m, every))
            if other != m and value != every:
                raise RecipeError(f"tune.{m}.unfreeze_every: differs from that of {other}, but the towers share parameters")
            start[i] = min(start.get(i, float("inf")), every * (top - number))
    return GradualUnfreezing(model, start)
