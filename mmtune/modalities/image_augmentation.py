"""Augment images in training.

All random numbers come from the generator that is passed in. A resumed run therefore trains on the same images as an
uninterrupted one, regardless of the number of threads.
"""

import math
import random
from collections.abc import Callable
from types import ModuleType
from typing import TypeAlias

import PIL.Image as PILImage
from PIL import ImageEnhance, ImageOps

from mmtune.errors import RecipeError

WHITE = (255, 255, 255)
Operation: TypeAlias = Callable[[ModuleType, PILImage.Image, random.Random], PILImage.Image]
"""An operation of TrivialAugment: called with (torchvision.transforms.v2.functional, image, generator), returns an image."""


class ImageAugmentation:
    """Apply rotation, random resized crop (Inception, arXiv 1409.4842), mirroring, colour jitter, and then `further`.

    The options are explained in `Image.augment`.
    """

    def __init__(self, crop: float, flip: bool, rotate: float, color: float, further: "FurtherAugmentation | None" = None):
        if not 0 < crop <= 1:
            raise RecipeError(f"augment.image.crop: {crop} is not in (0, 1]")
        self.crop, self.flip, self.rotate, self.color, self.further = crop, flip, rotate, color, further
        # The shorter side of the image is at most `magnification` times the shorter side of the crop. The smallest crop has the
        # fraction `crop` of the area and an aspect ratio of 2 ** 0.4.
        magnification = (2**0.4 / crop) ** 0.5 if crop < 1 else 1.0
        # blur and sharpening depend on the size of the pixels, so they need the image at its original size
        needs_original = further is not None and (further.blur or further.trivial)
        self.zoom = math.inf if needs_original else magnification

    def __call__(self, image: PILImage.Image, rng: random.Random) -> PILImage.Image:
        w, h = image.size
        if self.rotate:
            image = image.rotate(rng.uniform(-self.rotate, self.rotate), PILImage.Resampling.BILINEAR, fillcolor=WHITE)
        if self.crop < 1:
            area, ratio = rng.uniform(self.crop, 1.0), 2.0 ** rng.uniform(-0.4, 0.4)
            side = (area * w * h) ** 0.5
            cw, ch = min(w, max(1, round(side * ratio**0.5))), min(h, max(1, round(side / ratio**0.5)))
            x, y = rng.randint(0, w - cw), rng.randint(0, h - ch)
            square = min(w, h)  # resized to a square, so that the centre crop of the tower's preprocessing cuts nothing off
            image = image.resize((square, square), PILImage.Resampling.BILINEAR, box=(x, y, x + cw, y + ch), reducing_gap=2.0)
        if self.flip and rng.random() < 0.5:
            image = ImageOps.mirror(image)
        if self.color:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhance(image).enhance(rng.uniform(1 - self.color, 1 + self.color))
        return self.further(image, rng) if self.further else image


class FurtherAugmentation:
    """Apply TrivialAugment (arXiv 2103.10158), perspective distortion, blur, greyscale and random erasing (arXiv 1708.04896).

    The options are explained in `Image.augment`. All operations are functions of torchvision.transforms.v2.
    """

    def __init__(self, trivial: bool, perspective: float, blur: float, grey: float, erase: float):
        self.trivial, self.perspective, self.blur, self.grey, self.erase = trivial, perspective, blur, grey, erase

    def __bool__(self) -> bool:
        return bool(self.trivial or self.perspective or self.blur or self.grey or self.erase)

    def __call__(self, image: PILImage.Image, rng: random.Random) -> PILImage.Image:
        from torchvision.transforms.v2 import functional as F

        w, h = image.size
        if self.trivial:
            image = rng.choice(TRIVIAL_OPERATIONS)(F, image, rng)
        if self.perspective:
            corners = [[0, 0], [w - 1, 0], [w - 1, h - 1], [0, h - 1]]
            limit = self.perspective / 2
            moved = [
                [
                    x + (1 if x == 0 else -1) * round(rng.uniform(0, limit) * w),
                    y + (1 if y == 0 else -1) * round(rng.uniform(0, limit) * h),
                ]
                for x, y in corners
            ]
            image = F.perspective(image, corners, moved, fill=[*WHITE])
        if self.blur:
            sigma = rng.uniform(0.1, max(self.blur, 0.1))
            image = F.gaussian_blur(image, [2 * round(2 * sigma) + 1] * 2, [sigma, sigma])
        if self.grey and rng.random() < self.grey:
            image = F.to_grayscale(image, num_output_channels=3)
        if self.erase:
            area, ratio = rng.uniform(0.02, max(self.erase, 0.02)) * w * h, 2.0 ** rng.uniform(-1, 1)
            ew, eh = min(w, max(1, round((area * ratio) ** 0.5))), min(h, max(1, round((area / ratio) ** 0.5)))
            x, y = rng.randint(0, w - ew), rng.randint(0, h - eh)
            image = image.copy()
            image.paste(tuple(rng.randrange(256) for _ in range(3)), (x, y, x + ew, y + eh))
        return image


class TrivialAugment(FurtherAugmentation):
    """Apply one of 12 operations at a random strength (TrivialAugment, arXiv 2103.10158). Wrong where colours, brightness or the pose are the label."""

    zoom = math.inf

    def __init__(self) -> None:
        super().__init__(True, 0.0, 0.0, 0.0, 0.0)


def _shear(F: ModuleType, image: PILImage.Image, rng: random.Random) -> PILImage.Image:
    shear = [rng.uniform(-45, 45), 0.0] if rng.random() < 0.5 else [0.0, rng.uniform(-45, 45)]
    return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, fill=[*WHITE])


def _translate(F: ModuleType, image: PILImage.Image, rng: random.Random) -> PILImage.Image:
    horizontal = rng.random() < 0.5
    by = [rng.uniform(-0.3, 0.3) * image.width, 0.0] if horizontal else [0.0, rng.uniform(-0.3, 0.3) * image.height]
    return F.affine(image, angle=0.0, translate=[round(x) for x in by], scale=1.0, shear=[0.0, 0.0], fill=[*WHITE])


TRIVIAL_OPERATIONS: tuple[Operation, ...] = (
    lambda F, image, rng: image,
    _shear,
    _translate,
    lambda F, image, rng: F.rotate(image, rng.uniform(-135, 135), fill=[*WHITE]),
    lambda F, image, rng: F.adjust_brightness(image, rng.uniform(0.01, 1.99)),
    lambda F, image, rng: F.adjust_saturation(image, rng.uniform(0.01, 1.99)),
    lambda F, image, rng: F.adjust_contrast(image, rng.uniform(0.01, 1.99)),
    lambda F, image, rng: F.adjust_sharpness(image, rng.uniform(0.01, 1.99)),
    lambda F, image, rng: F.posterize(image, rng.randint(2, 8)),
    lambda F, image, rng: F.solarize(image, rng.uniform(0, 255)),
    lambda F, image, rng: F.autocontrast(image),
    lambda F, image, rng: F.equalize(image),
)
"""The operations of torchvision's TrivialAugmentWide, with its ranges of strength; the first one leaves the image unchanged."""
