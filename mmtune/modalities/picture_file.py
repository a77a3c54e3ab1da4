"""Open image files with Pillow, with three extensions.

Pillow's size limits are replaced by those of mmtune, 16-bit colours keep their full precision, and HEIC files are read if the
extra `heif` is installed.
"""

import contextlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import PIL.Image as PILImage
from PIL import PngImagePlugin

from mmtune.errors import Rejected
from mmtune.modalities.tones import picture_from_array

Result = TypeVar("Result")

# the file types in the header of a HEIF file that are HEIC images
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte order of 16-bit values (B: big-endian, L: little-endian, N: native) -> the opposite one. Pillow keeps only the high byte
of 16-bit colours; under the opposite byte order, it keeps the low byte instead."""
DEEP_MODES = ("RGB", "RGBA", "RGBX")
DEEP_GREY_ALPHA = "LA;16B"
_limits_lock = threading.Lock()


def open_picture(data: bytes, formats: list[str] | None = None) -> PILImage.Image:
    """Open an image file and read its header.

    formats: accept only these formats of Pillow, and HEIC; None means all formats

    Raises Rejected for a HEIC image if the extra `heif` is not installed, and any exception of Pillow.
    """
    try:
        return PILImage.open(io.BytesIO(data), formats=formats)
    except PILImage.UnidentifiedImageError:
        if data[4:8] != b"ftyp" or data[8:12] not in HEIF_BRANDS:
            raise
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise Rejected('to read a HEIC image, install the extra: pip install "mmtune[heif]"') from None
    return HeifImageFile(io.BytesIO(data))


def within_our_limits(read: Callable[[], Result], max_pixels: float) -> Result:
    """Call `read`, and if one of Pillow's limits stops it, call it again with wider limits.

    The wider limits are `max_pixels` pixels, and for a text of a PNG file (XMP, a colour profile) the limit that Pillow sets
    for all texts together. Pillow's limits are settings of the whole process. They are therefore changed only for the second
    call, by one thread at a time.
    """
    try:
        return read()
    except PILImage.DecompressionBombError:
        pass
    except ValueError as e:
        if "MAX_TEXT_CHUNK" not in str(e):
            raise
    with _wider_limits(max_pixels):
        return read()


@contextlib.contextmanager
def _wider_limits(max_pixels: float) -> Iterator[None]:
    """Widen Pillow's limits while the context is active."""
    with _limits_lock:
        before = PILImage.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        PILImage.MAX_IMAGE_PIXELS = int(max_pixels) // 2 + 1  # Pillow refuses more than twice as many
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
        try:
            yield
        finally:
            PILImage.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


def is_deep(image: PILImage.Image) -> bool:
    """Whether an image that is not decoded yet has more than 8 bits per colour."""
    return image.mode.startswith("I") or image.mode == "F" or _deep_mode(image) is not None


def load_deep_colours(image: PILImage.Image, data: bytes) -> None:
    """Decode a PNG or TIFF file with 16 bits per colour with full precision, in place; leave any other image unchanged.

    Pillow would keep only the high byte of each colour. Here, low and high bytes are read, and the values are scaled to 8-bit
    levels by the rule of `mmtune.modalities.tones`.

    image: the opened file, not decoded yet
    data: the content of the file
    """
    mode = _deep_mode(image)
    if mode is None:
        return
    low = PILImage.open(io.BytesIO(data), formats=[image.format or ""])
    if mode == DEEP_GREY_ALPHA:  # four bytes per pixel: two for grey, two for opacity
        _set_raw_mode(low, "RGBA")
        bytes_HW4 = np.asarray(low)
        grey, alpha = (bytes_HW4[..., i].astype(np.uint16) << 8 | bytes_HW4[..., i + 1] for i in (0, 2))
        values = np.stack([grey, grey, grey, alpha], -1)
    else:
        name, _, order = mode.partition(";16")
        _set_raw_mode(low, f"{name};16{SWAPPED[order]}")
        values = np.asarray(image).astype(np.uint16)
        values <<= 8
        values |= np.asarray(low)
    del low
    image.load()
    image.paste(picture_from_array(values))


def _deep_mode(image: PILImage.Image) -> str | None:
    """Return Pillow's name of the layout of the file's 16-bit colours, e.g. "RGB;16B", or None for any other image."""
    if image.format not in ("PNG", "TIFF"):
        return None
    modes = {mode for tile in getattr(image, "tile", []) if isinstance(mode := _arguments(tile)[0], str)}
    mode = modes.pop() if len(modes) == 1 else ""
    name, deep, order = mode.partition(";16")
    return mode if mode == DEEP_GREY_ALPHA or (deep and name in DEEP_MODES and order in SWAPPED) else None


def _arguments(tile: tuple) -> tuple:
    return tile[3] if isinstance(tile[3], tuple) else (tile[3],)


def _set_raw_mode(image: PILImage.Image, mode: str) -> None:
    tiles = image.tile  # type: ignore[attr-defined]
    for i, tile in enumerate(tiles):
        arguments = (mode, *_arguments(tile)[1:])
        tiles[i] = tile._replace(args=arguments if isinstance(tile[3], tuple) else mode)
