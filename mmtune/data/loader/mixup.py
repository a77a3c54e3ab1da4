"""Build the augmentation of one modality from its recipe block, including `mixup` with the signals of other training rows."""

import random

import numpy as np

from mmtune import modalities
from mmtune.contracts import Augmentation, Modality, Signal
from mmtune.data.decode import decode_row
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import RecipeError
from mmtune.recipe.augment_block import AugmentOptions


def make_augmentation(options: AugmentOptions, data: WeightedConcat | StreamedSets) -> Augmentation:
    """Build an augmentation that applies the modality's own options, then `steps`, then the `custom` ones, then `mixup` with another row.

    Raises RecipeError if a step cannot be made of its options, or if `mixup` is set for a modality whose signals cannot be mixed.
    """
    name = options.modality
    modality = modalities.get(name)
    own = modality.augment(**options.own) if options.own else None
    steps = [modalities.make_step(name, s.name, s.options, f"augment.{name}[{i}]", s.p) for i, s in enumerate(options.steps)]
    steps += [modalities.make_step(name, n, values, f"augment.{name}.custom") for n, values in options.custom.items()]
    if steps:
        own = modalities.with_steps(own, steps)
    if not options.mixup:
        return own or modality.augment()
    if type(modality).mix is Modality.mix:
        able = [m for m in modalities.names() if type(modalities.get(m)).mix is not Modality.mix]
        raise RecipeError(f"augment.{name}.mixup: signals of this kind cannot be mixed; there are: {', '.join(able)}")
    assert isinstance(data, WeightedConcat), "refused for streamed data"
    return Mixup(own, data, name, options.mixup)


class Mixup:
    """Applies the augmentation `inner`, then mixes in the signal of a random row with a weight drawn uniformly from 0 to `max_share`.

    The targets are not mixed: the row keeps its caption, because its own signal dominates the mix (as in BYOL-A, arXiv 2103.06695;
    mixup with mixed targets is arXiv 1710.09412).
    """

    def __init__(self, inner: "Augmentation | None", data: WeightedConcat, name: str, max_share: float):
        self.inner, self.data, self.name, self.max_share = inner, data, name, max_share
        self.modality, self.rows = modalities.get(name), np.flatnonzero(data.present[name])
        self.zoom: float = getattr(inner, "zoom", 1.0)

    def __call__(self, signal: Signal, rng: random.Random) -> Signal:
        signal = signal if self.inner is None else self.inner(signal, rng)
        background = decode_row(self.data, int(self.rows[rng.randrange(len(self.rows))]), self.name)
        return self.modality.mix(signal, background, rng.uniform(0, self.max_share))
