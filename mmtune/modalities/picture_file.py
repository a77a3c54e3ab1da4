"""Opens picture files: Pillow's own limits are replaced by ours, 16-bit colours are read whole, HEIC through the extra `heif`."""

import contextlib
import io
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import PIL.Image as PILImage
from PIL import PngImagePlugin

from mmtune.errors import Rejected
from mmtune.modalities.tones import picture_from_array

Result = TypeVar("Result")

HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
SWAPPED = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
"""Byte order of 16-bit numbers -> the order under which Pillow, which keeps the high byte, keeps the low one."""
DEEP_MODES = ("RGB", "RGBA", "RGBX")
DEEP_GREY_ALPHA = "LA;16B"
_limits_lock = threading.Lock()


def open_picture(data: bytes, formats: list[str] | None = None) -> PILImage.Image:
    """A Pillow image of which the header is read. Raises Rejected for a HEIC picture without the extra `heif`, and what Pillow
    raises. formats: only these."""
    try:
        return PILImage.open(io.BytesIO(data), formats=formats)
    except PILImage.UnidentifiedImageError:
        if data[4:8] != b"ftyp" or data[8:12] not in HEIF_BRANDS:
            raise
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise Rejected('a HEIC picture is read through an extra: pip install "mmtune[heif]"') from None
    return HeifImageFile(io.BytesIO(data))


# Process-wide, but for Pillow's own warnings only: `catch_warnings` around a call is not safe in threads, where two of them can leave
# all warnings of the process ignored.
warnings.filterwarnings("ignore", module=r"PIL\.")


def within_our_limits(read: Callable[[], Result], max_pixels: float) -> Result:
    """read() under Pillow's own limits; where these refuse, again under ours: `max_pixels`, and one text (XMP, a colour profile)
    of a PNG as large as all of them may be together. Pillow's are settings of the whole process, so they are changed only for
    that second reading, by one thread at a time."""
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
    with _limits_lock:
        before = PILImage.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK
        PILImage.MAX_IMAGE_PIXELS = int(max_pixels) // 2 + 1  # Pillow refuses more than twice as many
        PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
        try:
            yield
        finally:
            PILImage.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK = before


def is_deep(image: PILImage.Image) -> bool:
    """Whether a picture, not decoded yet, has more than 8 bits a colour."""
    return image.mode.startswith("I") or image.mode == "F" or _deep_mode(image) is not None


def load_deep_colours(image: PILImage.Image, data: bytes) -> None:
    """Decode a PNG or TIFF with 16 bits a colour, of which Pillow would keep the high byte alone, to the tones of `tones`; any
    other picture is left as it is."""
    mode = _deep_mode(image)
    if mode is None:
        return
    low = PILImage.open(io.BytesIO(data), formats=[image.format or ""])
    if mode == DEEP_GREY_ALPHA:  # four bytes a pixel: grey, opacity
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
    """The layout of the file's 16-bit colours, e.g. "RGB;16B"; None for other pictures."""
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
