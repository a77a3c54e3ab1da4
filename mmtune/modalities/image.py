"""The modality "image": any file that Pillow can read, decoded to an upright 8-bit RGB image."""

import base64
import io
import math
import re
from pathlib import Path

import numpy as np
import PIL.Image as PILImage
from PIL import ImageOps

from mmtune.contracts import Augmentation, Modality, Option
from mmtune.errors import RecipeError, Rejected
from mmtune.html.render import render_macro
from mmtune.modalities.encoded_value import unwrap_encoded
from mmtune.modalities.image_augmentation import FurtherAugmentation, ImageAugmentation
from mmtune.modalities.perceptual_hash import IMAGE_DISTANCE, image_hash
from mmtune.modalities.picture_file import is_deep, load_deep_colours, open_picture, within_our_limits
from mmtune.modalities.tones import picture_from_array, to_levels
from mmtune.modalities.turbo_jpeg import DecodedJpeg, decode_jpeg

MAX_PIXELS = 100_000_000  # default limit in datasets
REQUEST_PIXELS = 50_000_000  # default limit in HTTP requests
THUMBNAIL_SIDE = 160
CHAT_SIDE = 768  # a side that vision models take without dividing the picture further
BYTES_PER_PIXEL, BYTES_PER_PIXEL_OVER_WHITE = 12, 16
"""Peak memory of decoding an image, in bytes per pixel, without and with transparency.

It consists of the image and its RGB copy; with transparency, of the image, its RGBA copy, the white background, and the blend
of the last two. An image with more than 8 bits per colour takes twice as much."""
REQUEST_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Formats accepted in HTTP requests, in addition to HEIC if the extra `heif` is installed. Pillow can read more, but runs
external programs for some (Ghostscript for EPS)."""
OBJECT = re.compile(r" ?<[^<>]* at 0x[0-9a-fA-F]+>")
"""A Python object in a message of Pillow. It says nothing to a user, and its address differs from run to run."""
WHITE_IS_ZERO = 0  # a value of the TIFF tag PHOTOMETRIC
BITS, PHOTOMETRIC = 258, 262  # TIFF tags


def to_rgb(image: PILImage.Image) -> PILImage.Image:
    """Convert the first frame of an image to 8-bit RGB.

    The image is rotated by its EXIF orientation, transparent parts become white, and values that are not 8-bit levels are
    scaled by `tones.to_levels`. `image` may be modified in place, and may be the returned object.
    """
    if not isinstance(image, DecodedJpeg):  # which is decoded, and converted to Pillow's format only where Pillow reads it
        image.load()
    if image.format != "JPEG" or not {"exif", "xmp"}.isdisjoint(image.info):  # a JPEG without metadata has no orientation
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        tags = getattr(image, "tag_v2", {})
        bits = tags.get(BITS, (0,))[0]
        levels = to_levels(np.asarray(image), float(2**bits - 1) if 8 < bits < 16 else None)
        image = PILImage.fromarray(255 - levels if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else levels)
    if _has_transparency(image):
        image = image.convert("RGBA")
        image = PILImage.alpha_composite(PILImage.new("RGBA", image.size, "white"), image)
    # `convert` copies even where the mode is RGB already
    return image if image.format == "JPEG" and image.mode == "RGB" else image.convert("RGB")


def _has_transparency(image: PILImage.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _open(data: bytes, max_pixels: float, min_side: int | None = None) -> PILImage.Image:
    """Decode an image; its size is checked by the header before any pixel is decoded.

    max_pixels: limit of width x height
    min_side: if given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size (Pillow's draft mode, which is faster), as long as both
        sides keep at least this many pixels

    Raises Rejected if the image is too large or cannot be decoded.
    """
    if not data:
        raise Rejected("empty file")

    def read() -> PILImage.Image:
        image = open_picture(data)
        if image.width * image.height > max_pixels:
            raise Rejected(f"too large: {image.width} x {image.height} pixels, limit {max_pixels} (--max-pixels)")
        if min_side is not None and image.format == "JPEG":
            image.draft(image.mode, (min_side, min_side))
        load_deep_colours(image, data)
        return to_rgb(decode_jpeg(image, data) or image)

    try:
        return within_our_limits(read, max_pixels)
    except Rejected:
        raise
    except PILImage.DecompressionBombError:
        raise Rejected(f"too large: over {max_pixels} pixels (--max-pixels)") from None
    except Exception as e:  # Pillow's plugins raise almost anything on broken bytes
        first_line = OBJECT.sub("", str(e)).strip().partition("\n")[0]
        raise Rejected(f"not a readable picture: {type(e).__name__}: {first_line[:200]}") from None


def _header(data: bytes, max_pixels: float = REQUEST_PIXELS) -> PILImage.Image:
    """Open an image of one of REQUEST_FORMATS and read only its header."""
    PILImage.init()  # `open_picture` finds only plugins that are already loaded
    formats = [f for f in REQUEST_FORMATS if f in PILImage.OPEN]  # AVIF needs Pillow 11.3
    return within_our_limits(lambda: open_picture(data, formats), max_pixels)


class Image(Modality):
    """The modality "image". Its signals are RGB images of the class `PIL.Image.Image`."""

    name = "image"
    extensions = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "jfif", "avif", "heic", "heif")
    columns = ("image", "image_path", "picture", "photo", "img")
    augmentations = {
        "rand_augment": "mmtune.modalities.image_steps:RandAugment",
        "trivial_augment": "mmtune.modalities.image_augmentation:TrivialAugment",
        "random_erasing": "mmtune.modalities.image_steps:RandomErasing",
        "torchvision": "mmtune.modalities.image_steps:Torchvision",
    }
    near_duplicate_distance = IMAGE_DISTANCE
    options = {"max_pixels": Option(int, MAX_PIXELS, "reject images with more pixels than this")}
    request_limits = {"max_pixels": REQUEST_PIXELS}

    def decode(self, data: bytes) -> PILImage.Image:
        return _open(data, MAX_PIXELS * 4)  # a last resort against memory exhaustion; `check` applies the real limit

    def decode_scaled(self, data: bytes, input_size: float) -> PILImage.Image:
        """Decode at a reduced size, as in `Modality.decode_scaled`. input_size: shorter side of the tower's input, in
        pixels."""
        return _open(data, MAX_PIXELS * 4, math.ceil(2 * input_size))

    def check(self, data: bytes, max_pixels: float = MAX_PIXELS, **_: float) -> None:
        _open(data, max_pixels)

    def check_header(self, data: bytes, max_pixels: float = REQUEST_PIXELS, **_: float) -> int:
        try:
            image = _header(data, max_pixels)
        except Rejected:
            raise
        except PILImage.DecompressionBombError:
            raise Rejected(f"too large: over {max_pixels} pixels") from None
        except Exception as e:  # Pillow's plugins raise almost anything on broken bytes
            known = f"not a readable picture ({', '.join(REQUEST_FORMATS)})"
            raise Rejected(
                known if isinstance(e, PILImage.UnidentifiedImageError) else f"{known}: {type(e).__name__}"
            ) from None
        if image.width * image.height > max_pixels:
            raise Rejected(f"too large: {image.width} x {image.height} pixels, limit {max_pixels}")
        bytes_per_pixel = BYTES_PER_PIXEL_OVER_WHITE if _has_transparency(image) else BYTES_PER_PIXEL
        return image.width * image.height * bytes_per_pixel * (2 if is_deep(image) else 1)

    def coerce(self, value: object) -> PILImage.Image:
        """Convert a user's value to an RGB image.

        value: a path, bytes, an open binary file, a Hugging Face dictionary {"bytes", "path"}, a PIL image, or an array [H, W],
            [H, W, 3] or [H, W, 4], whose values are scaled to 8-bit levels by `mmtune.modalities.tones`
        """
        if isinstance(value, PILImage.Image):
            return to_rgb(value.copy())
        value = unwrap_encoded(value)
        if isinstance(value, bytes):
            return self.decode(value)
        if isinstance(value, str | Path):
            return self.from_file(value)
        try:
            array = np.asarray(value)
        except ValueError:  # lists of different lengths
            array = np.asarray(None)
        if array.dtype.kind not in "fuib" or not array.ndim:
            raise Rejected(f"an image must be a path, a PIL image or an array [H, W, 3]; got {type(value).__name__}")
        return to_rgb(picture_from_array(array))

    def encode_value(self, value: object) -> bytes:
        """Encode a value as PNG; the bytes of a file are returned as they are."""
        value = value if isinstance(value, PILImage.Image) else unwrap_encoded(value)
        if isinstance(value, bytes):
            return value
        out = io.BytesIO()
        self.coerce(value).save(out, "PNG", compress_level=1)
        return out.getvalue()

    def accepts(self, value: object) -> bool:
        """Accept a PIL image, an array [H, W, 3 or 4], or a path with one of `extensions`."""
        if isinstance(value, np.ndarray):
            return value.ndim == 3 and value.shape[2] in (3, 4)
        return isinstance(value, PILImage.Image) or super().accepts(value)

    def near_duplicate_key(self, signal: PILImage.Image) -> int | None:
        return image_hash(signal)

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
        **unknown: object,
    ) -> Augmentation:
        """Create an augmentation of images.

        crop: minimum fraction of the area that a random crop keeps; 1 means no crop
        flip: whether to mirror the image horizontally, with probability 0.5
        rotate: maximum rotation in either direction, in degrees
        color: strength of the jitter of brightness, contrast and saturation; 0 means none
        trivial: whether to apply one of twelve operations at a random strength (TrivialAugment)
        perspective: maximum perspective distortion, 0 to 1
        blur: maximum standard deviation of a Gaussian blur, in pixels
        grey: probability of conversion to greyscale
        erase: maximum fraction of the area that a rectangle of a random colour covers (random erasing)

        Raises RecipeError for an unknown option or an invalid value.
        """
        if unknown:
            known = "crop, flip, rotate, color, trivial, perspective, blur, grey, erase, mixup"
            raise RecipeError(f"augment.image.{next(iter(unknown))}: unknown; known: {known}")
        for key, value in (("perspective", perspective), ("grey", grey), ("erase", erase)):
            if not 0 <= value <= 1:
                raise RecipeError(f"augment.image.{key}: {value} is not a share from 0 to 1")
        for key, value in (("rotate", rotate), ("color", color), ("blur", blur)):
            if value < 0:
                raise RecipeError(f"augment.image.{key}: {value} is below 0")
        further = FurtherAugmentation(trivial, perspective, blur, grey, erase)
        return ImageAugmentation(crop, flip, rotate, color, further)

    def mix(self, signal: PILImage.Image, other: PILImage.Image, share: float) -> PILImage.Image:
        """Blend two images; `other` is resized to the size of `signal` and has the weight `share`."""
        return PILImage.blend(signal, other.resize(signal.size, PILImage.Resampling.BILINEAR), share)

    def to_html(self, data: bytes) -> str:
        image = self.decode(data)
        image.thumbnail((256, 256))
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85)
        return render_macro("values.html.j2", "image", base64.b64encode(out.getvalue()).decode())

    def thumbnail_html(self, data: bytes, label: str = "") -> str:
        """Show a thumbnail whose sides are at most THUMBNAIL_SIDE pixels."""
        return self.view_html(data, label, THUMBNAIL_SIDE)

    def view_html(self, data: bytes, label: str, side: int) -> str:
        """Show the image with sides of at most `side` pixels.

        The HTML contains its width and height, so that the layout of the page does not shift while the page loads.
        """
        image, out = self.decode(data), io.BytesIO()
        image.thumbnail((side, side), PILImage.Resampling.LANCZOS)
        image.save(out, "JPEG", quality=80, optimize=True)
        encoded = base64.b64encode(out.getvalue()).decode()
        return render_macro("values.html.j2", "image", encoded, label, image.width, image.height)

    def picture(self, data: bytes, side: int) -> PILImage.Image:
        image = self.decode(data).convert("RGB")
        image.thumbnail((side, side), PILImage.Resampling.LANCZOS)
        return image

    def examples(self) -> list[PILImage.Image]:
        noise = np.random.default_rng(0)
        return [PILImage.fromarray(noise.integers(0, 256, (60 + 9 * i, 90, 3), dtype=np.uint8)) for i in range(3)]

    def chat_part(self, data: bytes) -> dict[str, object]:
        """The picture as a data: URL of a JPEG whose sides are at most CHAT_SIDE pixels."""
        image, out = self.decode(data), io.BytesIO()
        image.thumbnail((CHAT_SIDE, CHAT_SIDE), PILImage.Resampling.LANCZOS)
        image.save(out, "JPEG", quality=85)
        url = f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
        return {"type": "image_url", "image_url": {"url": url}}

    def media_type(self, data: bytes) -> str:
        try:
            kind = (_header(data).format or "").replace("MPO", "JPEG")  # MPO, a format of cameras, is JPEG-compatible
            return "image/heic" if kind == "HEIF" else PILImage.MIME[kind]
        except Exception:  # Pillow's plugins raise almost anything on broken bytes
            return super().media_type(data)
