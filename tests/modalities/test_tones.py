"""Pictures of other numbers than 8-bit levels: one rule for arrays, files and uploads."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
from PIL import PngImagePlugin

from mmtune import modalities
from mmtune.errors import Rejected

image = modalities.get("image")
RAMP = np.tile(np.linspace(0, 1, 64), (3, 1))


def bytes_of(picture: PIL.Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def png_16_bit(values: np.ndarray) -> bytes:
    """[H, W] or [H, W, C] uint16 -> a PNG of 16 bits a colour, which Pillow cannot write."""
    height, width, channels = (*values.shape, 1)[:3]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, order: str, compress: bool, bits: int = 16, photometric: int | None = None) -> bytes:
    """[H, W] or [H, W, C] uint16 -> a TIFF in byte order "<" or ">", raw or deflated. bits: 12 packs two numbers into 3 bytes."""
    height, width, channels = (*values.shape, 1)[:3]
    if bits == 12:
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], 1)
        data = packed.astype(np.uint8).tobytes()
    else:
        data = values.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if compress else data
    bits_at, data_at = 8, 8 + 2 * channels
    ifd_at = data_at + len(data) + len(data) % 2
    per_channel = (3, channels, bits_at) if channels > 1 else (3, 1, bits)
    photometric = (2 if channels > 1 else 1) if photometric is None else photometric
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, *per_channel), (259, 3, 1, 8 if compress else 1)]
    tags += [(262, 3, 1, photometric), (273, 4, 1, data_at), (277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(data))]
    if channels == 4:
        tags.append((338, 3, 1, 2))
    ifd = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        ifd += struct.pack(f"{order}HHI" + ("HH" if short else "I"), tag, kind, count, *((value, 0) if short else (value,)))
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, ifd_at)
    body = struct.pack(f"{order}{channels}H", *[bits] * channels) + data + b"\0" * (len(data) % 2)
    return head + body + ifd + struct.pack(f"{order}I", 0)


def levels_of(value: object) -> np.ndarray:
    signal = image.decode(value) if isinstance(value, bytes) else image.coerce(value)
    return np.asarray(signal).astype(int)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale, shift", [(1, 0), (255, 0), (4000, 0), (20, 290), (2, -1), (1.04, -0.02), (1e-3, 5)])
def test_floats_of_any_range_keep_their_tones(kind, scale, shift):
    if kind == np.float16 and scale in (4000, 20, 1e-3):
        pytest.skip("float16 has too few numbers in this range")
    values = (RAMP * scale + shift).astype(kind)
    want = 255 * ((RAMP * scale + shift).clip(0, 1) if scale == 1.04 else RAMP)
    assert np.abs(levels_of(values)[..., 0] - want).max() <= 1
    if kind == np.float32:
        assert np.array_equal(levels_of(bytes_of(PIL.Image.fromarray(values), "TIFF")), levels_of(values))
        assert np.array_equal(levels_of(PIL.Image.fromarray(values)), levels_of(values))


@pytest.mark.parametrize("top", [255, 4095, 65535])
@pytest.mark.parametrize("shape", [(6, 10), (6, 10, 3), (6, 10, 4)])
def test_16_bit_numbers_are_equal_as_arrays_and_files(top, shape):
    values = np.random.default_rng(0).integers(0, top + 1, shape, dtype=np.uint16)
    values[0, 0] = top
    if shape[-1] == 4:
        values[..., 3] = top
    want = np.rint(values[..., :3].reshape(6, 10, -1) * (255 / top) if len(shape) == 3 else values[..., None] * (255 / top))
    assert np.array_equal(levels_of(values), np.broadcast_to(want, (6, 10, 3)))
    files = [png_16_bit(values), *(tiff(values, order, compress) for order in "<>" for compress in (False, True))]
    for data in files:
        assert np.array_equal(levels_of(data), levels_of(values))
        plain = PIL.Image.new("RGBA" if shape[-1] == 4 else "RGB", (10, 6))
        assert image.check_header(data) == 2 * image.check_header(bytes_of(plain, "PNG"))


def test_opacity_of_16_bits_lies_over_white():
    values = np.zeros((2, 2, 4), np.uint16)
    values[0, 0, 3] = 65535
    grey_alpha = np.stack([values[..., 0], values[..., 3]], -1)
    for found in (levels_of(values), levels_of(png_16_bit(values)), levels_of(png_16_bit(grey_alpha))):
        assert found[0, 0].tolist() == [0, 0, 0] and found[1, 1].tolist() == [255, 255, 255]


def test_12_bits_that_a_file_states_are_its_range():
    values = np.array([[0, 500], [1000, 2000]], np.uint16)
    assert levels_of(tiff(values, "<", False, bits=12))[..., 0].ravel().tolist() == [0, 31, 62, 125]
    assert levels_of(tiff(values, "<", False, bits=16))[..., 0].ravel().tolist() == [0, 31, 62, 125]


def test_a_16_bit_negative_is_turned():
    values = np.array([[0, 65535]], np.uint16)
    assert levels_of(tiff(values, "<", False, photometric=0))[..., 0].tolist() == [[255, 0]]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint32])
def test_whole_numbers_of_any_type(kind):
    assert levels_of(np.array([[0, 128, 255]], kind))[0, :, 0].tolist() == [0, 128, 255]
    assert levels_of(np.array([[0, 50_000, 100_000]], kind))[0, :, 0].tolist() == [0, 128, 255]
    assert levels_of(np.array([[False, True]]))[0, :, 0].tolist() == [0, 255]
    assert levels_of(np.array([[-100, 0, 150]], np.int16))[0, :, 0].tolist() == [0, 102, 255]


def test_numbers_that_are_not_finite():
    values = np.array([[0, 1, np.nan, np.inf, -np.inf]], np.float32)
    assert levels_of(values)[0, :, 0].tolist() == [0, 255, 0, 255, 0]
    with pytest.raises(Rejected, match="an image without any finite value"):
        image.coerce(np.full((3, 3), np.nan))
    with pytest.raises(Rejected, match="without pixels"):
        image.coerce(np.zeros((0, 3)))
    with pytest.raises(Rejected, match="an image must be a path, a PIL image or an array"):
        image.coerce(object())


MEMORY = """
import resource, sys
from mmtune import modalities
image = modalities.get("image")
small, large = (open(p, "rb").read() for p in sys.argv[1:])
image.decode(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image.decode(large)
print(image.check_header(large), 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA", "P", "16 bit", "float"])
def test_the_estimate_of_memory_is_not_below_what_decoding_takes(kind, tmp_path):
    for name, side in (("small", 64), ("large", 2000)):
        if kind == "16 bit":
            data = png_16_bit(np.full((side, side, 4), 40_000, np.uint16))
        elif kind == "float":
            data = bytes_of(PIL.Image.fromarray(np.full((side, side), 0.5, np.float32)), "TIFF")
        else:
            data = bytes_of(PIL.Image.new(kind, (side, side)), "PNG", **({"transparency": 0} if kind == "P" else {}))
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    estimate, taken = map(int, done.stdout.split())
    assert taken <= estimate + 8_000_000 + (tmp_path / "large").stat().st_size


def test_large_texts_and_profiles_of_a_png_do_not_reject_it():
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("XML:com.adobe.xmp", "<x/>" * 1_500_000, zip=True)
    data = bytes_of(PIL.Image.new("RGB", (9, 9), "red"), "PNG", pnginfo=texts, icc_profile=bytes(3_000_000))
    limit = PngImagePlugin.MAX_TEXT_CHUNK
    assert image.decode(data).getpixel((4, 4)) == (255, 0, 0) and image.check_header(data) > 0
    assert PngImagePlugin.MAX_TEXT_CHUNK == limit
    texts = PngImagePlugin.PngInfo()
    texts.add_text("after", "x" * 3_000_000, zip=True)
    texts.chunks = [(name, text, True) for name, text, *_ in texts.chunks]  # behind the pixels
    assert image.decode(bytes_of(PIL.Image.new("RGB", (9, 9)), "PNG", pnginfo=texts)).size == (9, 9)


def test_our_limit_of_pixels_holds_above_pillows(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    data = bytes_of(PIL.Image.new("L", (60, 60)), "PNG")
    image.check(data, max_pixels=3600)
    assert image.check_header(data, max_pixels=3600) > 0
    assert image.decode(data).size == (60, 60) and PIL.Image.MAX_IMAGE_PIXELS == 1000
    for check in (image.check, image.check_header):
        with pytest.raises(Rejected, match="too large"):
            check(data, max_pixels=3500)
        with pytest.raises(Rejected, match="too large"):
            check(data, max_pixels=1200)


def test_heic_is_read_or_its_extra_is_named(monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    out = io.BytesIO()
    heif.from_pillow(PIL.Image.new("RGB", (64, 48), "red")).save(out)
    data = out.getvalue()
    picture = image.decode(data)
    assert picture.size == (64, 48) and np.abs(np.subtract(picture.getpixel((9, 9)), (255, 0, 0))).max() < 6
    assert image.check_header(data) > 0 and image.media_type(data) == "image/heic"
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for read in (image.decode, image.check, image.check_header):
        with pytest.raises(Rejected, match=r'pip install "mmtune\[heif\]"'):
            read(data)
