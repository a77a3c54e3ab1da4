"""Tones of a picture with other numbers than 8-bit levels: which number is black, which is white.

One rule for arrays, files and uploads, by the numbers of the whole picture (colours and opacity each by themselves):

- whole numbers: 0 is black; white is what the file states (a 12-bit TIFF), else the smallest of 255, 4095 and 65535 that no pixel
  exceeds, else the brightest pixel; with negative numbers, as floats of another range;
- floats within 0..1 (5% beyond are clipped): 0 is black, 1 is white;
- floats within 0..255, the brightest above 127: 0 is black, 255 is white;
- other floats (degrees, metres, light that was measured): the smallest is black, the largest white.

NaN is black, infinity is white or black by its sign.
"""

import math

import numpy as np
import PIL.Image as PILImage

from mmtune.errors import Rejected

WHITE_LEVELS = (255, 4095, 65535)
OVERSHOOT = 0.05
BAND_NUMBERS = 1 << 20
"""Numbers that are converted at a time: a whole picture in float64 would take more memory than the picture."""


def picture_from_array(array: np.ndarray) -> PILImage.Image:
    """[H, W], [H, W, 1], [H, W, 3] or [H, W, 4] (the fourth is opacity) of booleans, whole numbers or floats -> an 8-bit picture.
    Raises Rejected for other shapes and types."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.dtype.kind not in "fuib":
        raise Rejected(
            f"a picture is an array [H, W], [H, W, 3] or [H, W, 4] of numbers; got {list(array.shape)} of {array.dtype}"
        )
    if not array.size:
        raise Rejected(f"a picture without pixels: an array {list(array.shape)}")
    if array.dtype == np.uint8:
        return PILImage.fromarray(array)
    if array.ndim == 3 and array.shape[2] == 4:
        levels = np.empty(array.shape, np.uint8)
        levels[..., :3], levels[..., 3] = to_levels(array[..., :3]), to_levels(array[..., 3])
        return PILImage.fromarray(levels)
    return PILImage.fromarray(to_levels(array))


def to_levels(values: np.ndarray, white: float | None = None) -> np.ndarray:
    """Numbers [H, ...] -> levels uint8 of the same shape, by the rule above. white: the number that is white, where it is stated.
    Raises Rejected where no number is finite."""
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
    """(black, white)"""
    if values.dtype.kind == "b":
        return 0.0, 1.0
    low, high = math.inf, -math.inf
    for rows in _bands(values):
        band = values[rows] if values.dtype.kind != "f" else values[rows][np.isfinite(values[rows])]
        if band.size:
            low, high = min(low, float(band.min())), max(high, float(band.max()))
    if low > high:
        raise Rejected("a picture of which no pixel is a finite number")
    if values.dtype.kind in "ui" and low >= 0:
        return 0.0, float(next((w for w in WHITE_LEVELS if high <= w), high))
    if values.dtype.kind == "f" and low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return 0.0, 1.0
    if values.dtype.kind == "f" and low >= 0 and 127 < high <= 255:
        return 0.0, 255.0
    return low, high
