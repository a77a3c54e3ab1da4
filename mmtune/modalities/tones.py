"""Scale the values of an image that are not 8-bit levels to 8-bit levels.

The same rule decides which value is black and which is white for arrays, files and uploads. It looks at the minimum and the
maximum of the whole image; opacity is scaled separately from the colours.

- Integers without negative values: 0 is black. White is the value that the file specifies (e.g. a 12-bit TIFF), else the
  smallest of 255, 4095 and 65535 that is not below the maximum, else the maximum.
- Floats from 0 to 1 (up to 5% beyond are clipped): 0 is black, 1 is white.
- Floats from 0 to 255 with a maximum above 127: 0 is black, 255 is white.
- All others (e.g. degrees, metres, measured intensities): the minimum is black, the maximum is white.

NaN and minus infinity are black, infinity is white.
"""

import math

import numpy as np
import PIL.Image as PILImage

from mmtune.errors import Rejected

WHITE_LEVELS = (255, 4095, 65535)
OVERSHOOT = 0.05  # e.g. the result of a sharpening filter on floats from 0 to 1
BAND_NUMBERS = 1 << 17
"""Values to convert at a time, because a copy of the whole image in float64 would take several times the memory of the
image."""


def picture_from_array(array: np.ndarray) -> PILImage.Image:
    """Convert an array to an 8-bit image.

    array: [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the fourth channel is opacity) of booleans, integers or floats

    Raises Rejected for any other shape or type.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.dtype.kind not in "fuib":
        raise Rejected(
            f"an image must be an array [H, W], [H, W, 3] or [H, W, 4] of numbers; got {list(array.shape)} of {array.dtype}"
        )
    if not array.size:
        raise Rejected(f"an image without pixels: an array of shape {list(array.shape)}")
    if array.dtype == np.uint8:
        return PILImage.fromarray(array)
    if array.ndim == 3 and array.shape[2] == 4:
        levels = np.empty(array.shape, np.uint8)
        levels[..., :3], levels[..., 3] = to_levels(array[..., :3]), to_levels(array[..., 3])
        return PILImage.fromarray(levels)
    return PILImage.fromarray(to_levels(array))


def to_levels(values: np.ndarray, white: float | None = None) -> np.ndarray:
    """Scale values [H, ...] to levels (uint8) of the same shape, by the rule of this module.

    white: the value that is white, if the file specifies it

    Raises Rejected if no value is finite.
    """
    if values.dtype == np.uint8 and white is None:
        return values
    black, white = (0.0, white) if white else _range(values)
    factor = 255.0 / (white - black) if white > black else 0.0
    levels = np.empty(values.shape, np.uint8)
    for rows in _bands(values):
        band = np.nan_to_num(values[rows].astype(np.float64), nan=black, posinf=white, neginf=black)
        levels[rows] = np.rint((band - black) * factor).clip(0, 255)
    return levels


def _bands(values: np.ndarray) -> list[slice]:
    step = max(1, BAND_NUMBERS // max(1, math.prod(values.shape[1:])))
    return [slice(start, start + step) for start in range(0, len(values), step)]


def _range(values: np.ndarray) -> tuple[float, float]:
    """Return the value that is black and the value that is white, by the rule of this module."""
    if values.dtype.kind == "b":
        return 0.0, 1.0
    low, high = math.inf, -math.inf
    for rows in _bands(values):
        band = values[rows] if values.dtype.kind != "f" else values[rows][np.isfinite(values[rows])]
        if band.size:
            low, high = min(low, float(band.min())), max(high, float(band.max()))
    if low > high:
        raise Rejected("an image without any finite value")
    if values.dtype.kind in "ui" and low >= 0:
        return 0.0, float(next((w for w in WHITE_LEVELS if high <= w), high))
    if values.dtype.kind == "f" and low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return 0.0, 1.0
    if values.dtype.kind == "f" and low >= 0 and 127 < high <= 255:
        return 0.0, 255.0
    return low, high
