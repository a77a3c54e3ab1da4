"""`augment` of a recipe -> one callable a modality. What needs a second signal, mixing, gets it from the training rows."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Modality
from mmtune.data.decode import decode_row
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import RecipeError

MIXUP = "mixup"


def augmentation(name: str, options: Mapping[str, Any], data: WeightedConcat) -> Callable[[Any, random.Random], Any]:
    """(signal, rng) -> signal of one modality's options: its own, and `mixup`, the largest share that another training signal
    gets. Raises RecipeError for an unknown option, and for signals that cannot be mixed."""
    kind, own = modalities.get(name), {k: v for k, v in options.items() if k != MIXUP}
    share = options.get(MIXUP, 0)
    if not isinstance(share, int | float) or not 0 <= share <= 0.5:
        raise RecipeError(f"augment.{name}.{MIXUP}: {share!r} is not a share from 0 to 0.5")
    if share and type(kind).mix is Modality.mix:
        able = [m for m in modalities.names() if type(modalities.get(m)).mix is not Modality.mix]
        raise RecipeError(f"augment.{name}.{MIXUP}: signals of this kind cannot be mixed; there are: {', '.join(able)}")
    inner = kind.augment(**own) if own else None
    return Mixed(inner, data, name, float(share)) if share else (inner or kind.augment())


class Mixed:
    """Another row's signal in the background, its share drawn from 0 to `share`, after the modality's own augmentation. The row
    keeps its words: it stays what is heard most (as in BYOL-A, arXiv 2103.06695; mixup with mixed targets is 1710.09412)."""

    def __init__(self, inner: Callable[[Any, random.Random], Any] | None, data: WeightedConcat, name: str, share: float):
        self.inner, self.data, self.name, self.share = inner, data, name, share
        self.kind, self.rows = modalities.get(name), np.flatnonzero(data.present[name])
        self.zoom: float = getattr(inner, "zoom", 1.0)

    def __call__(self, signal: Any, rng: random.Random) -> Any:
        signal = signal if self.inner is None else self.inner(signal, rng)
        other = decode_row(self.data, int(self.rows[rng.randrange(len(self.rows))]), self.name)
        return self.kind.mix(signal, other, rng.uniform(0, self.share))
