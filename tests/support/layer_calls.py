"""How often the layers of models run, counted by forward hooks of torch."""

import contextlib
from collections import Counter
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def layer_calls(*models: nn.Module) -> Iterator[Counter[str]]:
    """Context manager: {name of a layer: number of its calls within the context}, with the number of the model before the name."""
    calls: Counter[str] = Counter()
    handles = [
        layer.register_forward_hook(lambda *_, key=f"{number} {name}": calls.update([key]))
        for number, model in enumerate(models)
        for name, layer in model.named_modules()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
