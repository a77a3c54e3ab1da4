"""Pictures: any file Pillow reads, as an upright 8-bit RGB picture."""

import base64
import io
import math
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image as PILImage
from PIL import ImageOps

from mmtune.contracts import Modality, Option
from mmtune.errors import RecipeError, Rejected
from mmtune.html.render import render_macro
from mmtune.modalities.augmentations import Changes
from mmtune.modalities.perceptual_hash import NEAR_PICTURES, picture_key

MAX_PIXELS = 100_000_000
CARD_SIDE = 160
SERVED_PIXELS = 50_000_000
DECODED = 12  # bytes a pixel while `_rgb` works: the picture, its RGBA, and the white it is laid over
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What a stranger may send: those of `extensions`. Pillow knows more, some through other programs (EPS through Ghostscript)."""
_WIDE = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}


def _rgb(picture: PILImage.Image) -> PILImage.Image:
    """First frame, upright, transparency over white, 16-bit scaled to 8-bit, RGB. May change `picture`, or give it back."""
    picture.load()
    if picture.format != "JPEG" or not {"exif", "xmp"}.isdisjoint(picture.info):  # else a JPEG says nothing about its side
        ImageOps.exif_transpose(picture, in_place=True)
    if picture.mode in _WIDE:
        wide = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        top = 65535.0 if picture.mode != "F" and wide.max(initial=0) > 255 else max(255.0, float(wide.max(initial=0)))
        picture = PILImage.fromarray((wide.clip(0) * (255.0 / top)).round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = PILImage.new("RGBA", picture.size, "white")
        picture = PILImage.alpha_composite(white, picture)
    return picture if picture.format == "JPEG" and picture.mode == "RGB" else picture.convert("RGB")  # which copies


def _open(data: bytes, max_pixels: float, least: int | None = None) -> PILImage.Image:
    """Decode `data`; the header's size is checked before a pixel is read. least: pixels that either side must keep; a JPEG
    is then decoded at 1/2, 1/4 or 1/8 (of its cosine transform, "draft mode") where that leaves so many."""
    if not data:
        raise Rejected("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = PILImage.open(io.BytesIO(data))
            if picture.width * picture.height > max_pixels:
                raise Rejected(f"too large: {picture.width} x {picture.height} pixels, limit {max_pixels} (--max-pixels)")
            if least is not None and picture.format == "JPEG":
                picture.draft(picture.mode, (least, least))
            return _rgb(picture)
    except Rejected:
        raise
    except Exception as e:  # Pillow's plugins raise almost anything on broken bytes
        raise Rejected(
            f"not a readable picture: {type(e).__name__}: {str(e).splitlines()[0][:200] if str(e) else ''}"
        ) from None


def _header(data: bytes) -> PILImage.Image:
    """The header alone, of one of FORMATS."""
    PILImage.init()  # `formats` knows only plugins that are loaded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PILImage.open(io.BytesIO(data), formats=FORMATS)


class Image(Modality):
    """Signals are RGB `PIL.Image.Image`."""

    name = "image"
    extensions = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm")
    columns = ("image", "image_path", "picture", "photo", "img")
    near_duplicate_distance = NEAR_PICTURES
    options = {"max_pixels": Option(int, MAX_PIXELS, "reject pictures with more pixels than this")}
    request_limits = {"max_pixels": SERVED_PIXELS}

    def decode(self, data: bytes) -> PILImage.Image:
        return _open(data, MAX_PIXELS * 4)

    def decode_scaled(self, data: bytes, enough: float) -> PILImage.Image:
        """enough: pixels of the shorter side."""
        return _open(data, MAX_PIXELS * 4, math.ceil(2 * enough))

    def check(self, data: bytes, max_pixels: float = MAX_PIXELS, **_: float) -> None:
        _open(data, max_pixels)

    def check_header(self, data: bytes, max_pixels: float = SERVED_PIXELS, **_: float) -> int:
        try:
            width, height = _header(data).size
        except PILImage.DecompressionBombError:
            raise Rejected(f"too large: more pixels than Pillow opens, limit {max_pixels}") from None
        except Exception as e:  # as in _open
            known = f"not a readable picture ({', '.join(FORMATS)})"
            raise Rejected(
                known if isinstance(e, PILImage.UnidentifiedImageError) else f"{known}: {type(e).__name__}"
            ) from None
        if width * height > max_pixels:
            raise Rejected(f"too large: {width} x {height} pixels, limit {max_pixels}")
        return width * height * DECODED

    def coerce(self, value: Any) -> PILImage.Image:
        """A path, bytes, `PIL.Image`, or an array [H, W], [H, W, 3] or [H, W, 4] (uint8, or floats in 0..1)."""
        if isinstance(value, PILImage.Image):
            return _rgb(value.copy())
        if isinstance(value, bytes):
            return self.decode(value)
        if isinstance(value, str | Path):
            return self.from_file(value)
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = (array.clip(0, 1) * 255).round()
        if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.dtype.kind not in "fui":
            raise Rejected(f"a picture is a path, a PIL image or an array [H, W, 3]; got {type(value).__name__} {array.shape}")
        return _rgb(PILImage.fromarray(array.astype(np.uint8)))

    def accepts(self, value: object) -> bool:
        """A PIL image, an array [H, W, 3 or 4], or a path with an image's suffix."""
        if isinstance(value, np.ndarray):
            return value.ndim == 3 and value.shape[2] in (3, 4)
        return isinstance(value, PILImage.Image) or super().accepts(value)

    def near_duplicate_key(self, signal: PILImage.Image) -> int | None:
        return picture_key(signal)

    def augment(
        self,
        crop: float = 1.0,
        flip: bool = False,
        rotate: float = 0.0,
        color: float = 0.0,
        trivial: bool = False,
        perspective: float = 0.0,
        blur: float = 0.0,
        grey: float = 0.0,
        erase: float = 0.0,
        **unknown: Any,
    ) -> Callable[[Any, random.Random], Any]:
        """`crop`: smallest share of the area kept (1 = off); `flip`: mirror half of the time; `rotate`: degrees at most;
        `color`: strength of brightness, contrast and saturation jitter (0 = off); `trivial`: one of twelve changes at a random
        strength; `perspective`: distortion at most, 0 to 1; `blur`: its radius at most, in pixels; `grey`: how often; `erase`:
        largest share of the area that a rectangle hides."""
        if unknown:
            known = "crop, flip, rotate, color, trivial, perspective, blur, grey, erase, mixup"
            raise RecipeError(f"augment.image.{next(iter(unknown))}: unknown; known: {known}")
        for key, value in (("perspective", perspective), ("grey", grey), ("erase", erase)):
            if not 0 <= value <= 1:
                raise RecipeError(f"augment.image.{key}: {value} is not a share from 0 to 1")
        more = Changes(trivial, perspective, blur, grey, erase)
        return Augment(crop, flip, rotate, color, more)

    def mix(self, signal: PILImage.Image, other: PILImage.Image, share: float) -> PILImage.Image:
        """The average of both, `other` stretched to the size of `signal` with weight `share`."""
        return PILImage.blend(signal, other.resize(signal.size, PILImage.Resampling.BILINEAR), share)

    def to_html(self, data: bytes) -> str:
        picture = self.decode(data)
        picture.thumbnail((256, 256))
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=85)
        return render_macro("values.html.j2", "image", base64.b64encode(out.getvalue()).decode())

    def thumbnail_html(self, data: bytes, label: str = "") -> str:
        """A thumbnail, CARD_SIDE pixels at most, with its size written down so that a page does not jump."""
        picture, out = self.decode(data), io.BytesIO()
        picture.thumbnail((CARD_SIDE, CARD_SIDE), PILImage.Resampling.LANCZOS)
        picture.save(out, "JPEG", quality=80, optimize=True)
        data_url = base64.b64encode(out.getvalue()).decode()
        return render_macro("values.html.j2", "image", data_url, label, picture.width, picture.height)

    def media_type(self, data: bytes) -> str:
        try:
            return PILImage.MIME[(_header(data).format or "").replace("MPO", "JPEG")]  # cameras' MPO opens as a JPEG
        except Exception:  # as in _open
            return super().media_type(data)

    def input_component(self, **options: Any) -> Any:
        import gradio

        return gradio.Image(sources=["upload", "clipboard", "webcam"], type="filepath", buttons=[], height=240, **options)


class Augment:
    """Random resized crop (Inception, arXiv 1409.4842), mirror, rotation and colour jitter on a PIL picture."""

    def __init__(self, crop: float, flip: bool, rotate: float, color: float, more: Changes | None = None):
        if not 0 < crop <= 1:
            raise RecipeError(f"augment.image.crop: {crop} is not in (0, 1]")
        self.crop, self.flip, self.rotate, self.color, self.more = crop, flip, rotate, color, more
        narrow = (2**0.4 / crop) ** 0.5 if crop < 1 else 1.0  # the least side of a crop is the picture's through this
        fine = more is not None and (more.blur or more.trivial)  # a blur's radius, a sharpened edge: in the original's pixels
        self.zoom = math.inf if fine else narrow

    def __call__(self, picture: PILImage.Image, rng: random.Random) -> PILImage.Image:
        from PIL import ImageEnhance

        w, h = picture.size
        if self.rotate:
            picture = picture.rotate(
                rng.uniform(-self.rotate, self.rotate), PILImage.Resampling.BILINEAR, fillcolor=(255, 255, 255)
            )
        if self.crop < 1:
            area, ratio = rng.uniform(self.crop, 1.0), 2.0 ** rng.uniform(-0.4, 0.4)
            side = (area * w * h) ** 0.5
            cw, ch = min(w, max(1, round(side * ratio**0.5))), min(h, max(1, round(side / ratio**0.5)))
            x, y = rng.randint(0, w - cw), rng.randint(0, h - ch)
            square = min(w, h)  # the crop is stretched to a square: the tower's own resize and centre crop then keep all of it
            picture = picture.resize(
                (square, square), PILImage.Resampling.BILINEAR, box=(x, y, x + cw, y + ch), reducing_gap=2.0
            )
        if self.flip and rng.random() < 0.5:
            picture = ImageOps.mirror(picture)
        if self.color:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                picture = enhance(picture).enhance(rng.uniform(1 - self.color, 1 + self.color))
        return self.more(picture, rng) if self.more else picture
