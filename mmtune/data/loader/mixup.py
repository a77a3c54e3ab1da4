"""`augment` of a recipe -> one callable a modality. What needs a second signal, mixing, gets it from the training rows."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Modality
from mmtune.data.decode import decode_row
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import RecipeError
from mmtune.recipe.augment_block import AugmentOptions


def augmentation(options: AugmentOptions, data: WeightedConcat) -> Callable[[Any, random.Random], Any]:
    """(signal, rng) -> signal of one modality's options: its own augmentation, then `mixup` with a signal of another row.

    Raises RecipeError for signals that cannot be mixed.
    """
    name = options.modality
    kind = modalities.get(name)
    if not options.mixup:
        return kind.augment(**options.own)
    if type(kind).mix is Modality.mix:
        able = [m for m in modalities.names() if type(modalities.get(m)).mix is not Modality.mix]
        raise RecipeError(f"augment.{name}.mixup: signals of this kind cannot be mixed; there are: {', '.join(able)}")
    return Mixed(kind.augment(**options.own) if options.own else None, data, name, options.mixup)


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
