"""Resize and centre-crop very thin images without creating the resized image.

Preprocessing usually resizes the shorter side of an image and then crops the centre. An image of 8000 x 1 pixels, resized so
that its shorter side has 224 pixels, would have 1,792,000 x 224 pixels.
"""

import math
from collections.abc import Callable

import PIL.Image as PILImage

MAX_OVER_CROP = 8
"""A resized image with at most this many times the pixels of the crop is small enough to be created. Images of usual shapes
are."""
SUPPORT = 3  # the largest radius of a resampling filter (Lanczos), in pixels of the smaller of original and resized image


def shortest_edge_size(width: int, height: int, edge: int) -> tuple[int, int]:
    """Return the (width, height) of an image after its shorter side is resized to `edge`, rounded as in torchvision."""
    longer = int(edge * max(width, height) / min(width, height))
    return (edge, longer) if width <= height else (longer, edge)


def centre_crop_of_resized(
    image: PILImage.Image,
    resized: tuple[int, int],
    crop: tuple[int, int],
    resample: int,
    rounding: Callable[[float], int] = round,
) -> PILImage.Image | None:
    """Resize and centre-crop an image, using only as much memory as the crop needs.

    The result is the same as that of `image.resize(resized, resample)` followed by a centre crop.

    resized: (width, height) of the resized image
    crop: (width, height) of the crop; a side that is longer than that of the resized image is shortened to it
    resample: Pillow's number of the resampling filter
    rounding: turns half of an odd number of pixels that are cut off into the first pixel: round as in torchvision, int rounds down

    Returns None if the resized image is small enough to be created in the usual way (see MAX_OVER_CROP).
    """
    (width, height), (crop_width, crop_height) = resized, (min(a, b) for a, b in zip(resized, crop, strict=True))
    if width * height <= MAX_OVER_CROP * crop_width * crop_height:
        return None
    x, first_x, last_x = _window(image.width, width, crop_width, rounding)
    y, first_y, last_y = _window(image.height, height, crop_height, rounding)
    part = image.crop((first_x, first_y, last_x, last_y))
    box = (x[0] - first_x, y[0] - first_y, min(x[1] - first_x, part.width), min(y[1] - first_y, part.height))
    return part.resize((crop_width, crop_height), PILImage.Resampling(resample), box=box)


def _window(length: int, resized: int, crop: int, rounding: Callable[[float], int]) -> tuple[tuple[float, float], int, int]:
    """Compute, along one axis, which pixels of the original image the crop depends on.

    length, resized, crop: lengths of the original image, of the resized image and of the crop
    rounding: as for `centre_crop_of_resized`

    Returns where the crop begins and ends in the original image, the first pixel that it depends on, and the end (exclusive) of
    the pixels that it depends on.
    """
    scale = length / resized
    start = rounding((resized - crop) / 2)
    begin, end = start * scale, min((start + crop) * scale, float(length))
    margin = math.ceil(SUPPORT * max(scale, 1.0)) + 1
    return (begin, end), max(0, math.floor(begin) - margin), min(length, math.ceil(end) + margin)
