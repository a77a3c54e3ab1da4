"""Decode JPEG files with libjpeg-turbo through simplejpeg, with exactly the pixels of Pillow, in about 0.7 of Pillow's time.

Both libraries decode with the accurate integer DCT and smooth chroma upsampling, so their pixels are equal, at full size and at 1/2, 1/4
and 1/8. That is checked once in each process, on small images: if another version of either library decodes differently, Pillow
decodes everything. So neither embeddings nor fingerprints depend on this module.
"""

import functools
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image as PILImage

if TYPE_CHECKING:
    from PIL.Image import core


def decode_jpeg(image: PILImage.Image, data: bytes) -> PILImage.Image | None:
    """Decode an opened JPEG file, with the size that `image.draft` has chosen.

    image: the file opened by Pillow, not decoded yet
    data: the content of the file

    Returns an RGB image with the metadata of `image`, or None if Pillow must decode the file: other formats and colours than RGB,
    damaged files, and without simplejpeg.
    """
    if image.format != "JPEG" or image.mode != "RGB" or not _is_exact():
        return None
    scale = (getattr(image, "decoderconfig", ()) or (1,))[0]  # what `draft` has chosen: 1, 2, 4 or 8
    pixels = _decode(data, image.size, scale)
    return None if pixels is None else DecodedJpeg(pixels, image.info)


class DecodedJpeg(PILImage.Image):
    """An RGB image whose pixels are an array until Pillow needs them: preprocessing by torch then makes no copy in Pillow's format.

    pixels: uint8 [H, W, 4] (red, green, blue, 255), until `load` has converted it; then None
    info: the metadata
    """

    format, format_description = "JPEG", "JPEG (ISO 10918)"
    pixels: np.ndarray | None = None

    def __init__(self, pixels: np.ndarray, info: Mapping[str | tuple[int, int], object]):
        super().__init__()
        self._mode, self._size = "RGB", (pixels.shape[1], pixels.shape[0])
        self.pixels = pixels
        self.info = dict(info)

    def load(self) -> "core.PixelAccess | None":
        """Convert the pixels to Pillow's format, as every method of an image asks for before it reads them."""
        pixels = self.pixels
        if pixels is not None:
            image = PILImage.new("RGB", self.size)
            image.frombytes(pixels, "raw", "RGBX", 0, 1)  # a sixth of the time of `convert`
            self.im = image.im
            self.pixels = None  # only now: another thread may call this at the same time
        return super().load()


def pixels_of(image: PILImage.Image) -> np.ndarray:
    """The pixels of an RGB image, uint8 [H, W, 3 or 4]; a fourth channel means nothing. They may be those of the image: do not change them."""
    pixels = image.pixels if isinstance(image, DecodedJpeg) else None
    return np.array(image) if pixels is None else pixels  # a copy that may be written: torch warns of others


def _decode(data: bytes, size: tuple[int, int], scale: int) -> np.ndarray | None:
    """Decode to pixels [H, W, 4] at 1/scale; None if the result would not have this size, or if the file is damaged in any way."""
    import simplejpeg

    try:  # pixels of four bytes, as Pillow stores them
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "RGBX", min_width=size[0], min_height=size[1], min_factor=scale)
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (size[1], size[0]) else None


@functools.cache
def _is_exact() -> bool:
    """Whether simplejpeg is installed and its pixels are those of Pillow, for three kinds of chroma subsampling and four scales."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return False
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    picture = PILImage.fromarray(noise).resize((83, 61), PILImage.Resampling.BICUBIC)
    for subsampling in ("4:4:4", "4:2:2", "4:2:0"):
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=80, subsampling=subsampling)
        for scale in (1, 2, 4, 8):
            wanted = PILImage.open(io.BytesIO(out.getvalue()))
            wanted.draft("RGB", (picture.width // scale, picture.height // scale))
            found = _decode(out.getvalue(), wanted.size, scale)
            if found is None or not np.array_equal(found[:, :, :3], np.asarray(wanted)):
                return False
    return True
