"""Augmentations of images by torchvision.transforms.v2, for `augment: {image: [...]}`.

All random numbers come from the generator that is passed in (see `library_random`). Each class says which labels it makes wrong.
"""

import math
import random

import PIL.Image as PILImage

from mmtune.errors import RecipeError
from mmtune.modalities.augmentation_checks import checked_range, library_transform
from mmtune.modalities.library_random import seeded_torch

TORCHVISION = (
    *("AugMix", "AutoAugment", "CenterCrop", "ColorJitter", "ElasticTransform", "GaussianBlur", "GaussianNoise", "Grayscale"),
    *("JPEG", "Pad", "RandAugment", "RandomAdjustSharpness", "RandomAffine", "RandomAutocontrast", "RandomChannelPermutation"),
    *("RandomCrop", "RandomEqualize", "RandomErasing", "RandomGrayscale", "RandomHorizontalFlip", "RandomInvert"),
    *("RandomPerspective", "RandomPhotometricDistort", "RandomPosterize", "RandomResize", "RandomResizedCrop"),
    *("RandomRotation", "RandomShortestSize", "RandomSolarize", "RandomVerticalFlip", "RandomZoomOut", "ScaleJitter"),
    "TrivialAugmentWide",
)
"""Transforms of torchvision.transforms.v2 that take one image and return one."""
NEED_TENSORS = ("RandomErasing", "GaussianNoise")
CHANCE = (
    *("RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize", "RandomErasing", "RandomGrayscale"),
    *("RandomHorizontalFlip", "RandomInvert", "RandomPerspective", "RandomPosterize", "RandomSolarize"),
    *("RandomVerticalFlip", "RandomZoomOut"),
)
"""Transforms with a probability `p` of their own; the recipe's p decides instead."""


class Torchvision:
    """Any image transform of torchvision.transforms.v2 by its class name. Wrong where what it changes is the label: sides (flips), colours, size."""

    def __init__(self, name: str, **options: object):
        """
        name: name of the class, e.g. RandomErasing; the other keys are its arguments
        """
        from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

        for option, kind in (("policy", AutoAugmentPolicy), ("interpolation", InterpolationMode)):
            if isinstance(options.get(option), str):
                try:
                    options[option] = kind(options[option])
                except ValueError:
                    known = ", ".join(k.value for k in kind)
                    raise RecipeError(f"{option}: {options[option]!r} is none of {known}") from None
        self.name, self.transform = name, library_transform(v2, name, TORCHVISION, options, name in CHANCE)
        if name in CHANCE:
            self.transform.p = 1.0  # type: ignore[attr-defined]
        # other transforms depend on the size of the pixels, so they need the image at its original size
        self.zoom = 1.0 if name in ("RandomErasing", "RandomHorizontalFlip", "RandomVerticalFlip", "ColorJitter") else math.inf
        self(PILImage.effect_noise((96, 64), 90).convert("RGB"), random.Random(0))  # what it refuses in a call, it refuses now

    def __call__(self, image: PILImage.Image, rng: random.Random) -> PILImage.Image:
        from torchvision.transforms.v2 import functional as F

        value = F.pil_to_tensor(image) if self.name in NEED_TENSORS else image
        try:
            with seeded_torch(rng.getrandbits(32)):
                value = self.transform(value)
        except (
            Exception
        ) as e:  # a library raises almost anything for an image that it cannot change, e.g. one smaller than a crop
            raise RecipeError(f"{self.name}: {type(e).__name__}: {e}".partition("\n")[0]) from None
        return F.to_pil_image(value).convert("RGB") if self.name in NEED_TENSORS else value.convert("RGB")  # type: ignore[attr-defined]


class RandAugment(Torchvision):
    """Apply some of 14 operations at one strength (RandAugment, arXiv 1909.13719). Wrong where colours or brightness are the label."""

    def __init__(self, operations: int = 2, magnitude: int = 9):
        """
        operations: number of operations
        magnitude: their strength, 0 to 30
        """
        if operations < 1:
            raise RecipeError(f"operations: {operations} is not 1 or more")
        if not 0 <= magnitude <= 30:
            raise RecipeError(f"magnitude: {magnitude} is not a number from 0 to 30")
        super().__init__("RandAugment", num_ops=operations, magnitude=magnitude)


class RandomErasing(Torchvision):
    """Cover a rectangle (random erasing, arXiv 1708.04896). Wrong where a small detail is the label, which the rectangle can cover."""

    def __init__(self, scale: tuple[float, float] = (0.02, 0.33), ratio: tuple[float, float] = (0.3, 3.3), noise: bool = False):
        """
        scale: [MIN, MAX] of the covered share of the area
        ratio: [MIN, MAX] of the rectangle's aspect ratio
        noise: whether to cover by random colours instead of black
        """
        checked_range("scale", scale, 0, 1)
        checked_range("ratio", ratio, 1e-3, 1e3)
        super().__init__("RandomErasing", scale=scale, ratio=ratio, value="random" if noise else 0)
