"""JPEG files decoded through simplejpeg: the pixels of Pillow, whatever the file; what is not RGB or is damaged is left to Pillow."""

import io
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from transformers import CLIPImageProcessor

from mmtune import modalities
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.errors import Rejected
from mmtune.modalities import image as image_module
from mmtune.modalities import turbo_jpeg

IMAGE = modalities.get("image")


@pytest.fixture(autouse=True)
def _installed():
    assert turbo_jpeg._is_exact()


def jpeg(size=(203, 151), mode="RGB", **options) -> bytes:
    rng = np.random.default_rng(3)
    picture = PIL.Image.fromarray(rng.integers(0, 256, (23, 31, 3), np.uint8)).resize(size, PIL.Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.convert(mode).save(out, "JPEG", **options)
    return out.getvalue()


def by_pillow(monkeypatch, decode):
    with monkeypatch.context() as patch:
        patch.setattr(image_module, "decode_jpeg", lambda image, data: None)
        return decode()


def exif(orientation: int) -> PIL.Image.Exif:
    found = PIL.Image.Exif()
    found[0x0112] = orientation
    return found


FILES = {
    **{f"subsampling {s}": {"subsampling": s} for s in ("4:4:4", "4:2:2", "4:2:0")},
    "progressive": {"progressive": True},
    "quality 30": {"quality": 30},
    "restart markers": {"restart_marker_blocks": 3},
    "stored as RGB": {"keep_rgb": True},
    "one pixel": {"size": (1, 1)},
    "thin": {"size": (1, 300)},
    "odd": {"size": (97, 33)},
    "colour profile": {"icc_profile": b"x" * 300},
    **{f"turned {n}": {"exif": exif(n)} for n in (1, 3, 6)},
}


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_are_those_of_pillow(name, monkeypatch):
    data = jpeg(**FILES[name])
    calls = []
    real = turbo_jpeg._decode
    monkeypatch.setattr(turbo_jpeg, "_decode", lambda *a: (calls.append(a[2]), real(*a))[1])
    for decode in (lambda: IMAGE.decode(data), *(lambda side=side: IMAGE.decode_scaled(data, side) for side in (9, 20, 37))):
        found, wanted = decode(), by_pillow(monkeypatch, decode)
        assert found.mode == "RGB" and found.size == wanted.size and np.array_equal(np.asarray(found), np.asarray(wanted))
    assert len(calls) == 4  # none was left to Pillow
    if "size" not in FILES[name]:
        assert calls == [1, 8, 2, 2]


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_left_to_pillow(mode, monkeypatch):
    data = jpeg(mode=mode)
    found = IMAGE.decode(data)
    assert np.array_equal(np.asarray(found), np.asarray(by_pillow(monkeypatch, lambda: IMAGE.decode(data))))


@pytest.mark.parametrize("cut", [0.3, 0.7, 0.99])
def test_damaged_files_are_judged_as_pillow_judges_them(cut, monkeypatch):
    whole = jpeg()
    for data in (whole[: int(len(whole) * cut)], whole[: len(whole) // 2] + b"\0" * 40 + whole[len(whole) // 2 + 40 :]):

        def result(data=data):
            try:
                return np.asarray(IMAGE.decode(data)).tobytes()
            except Rejected as e:
                return str(e)

        assert result() == by_pillow(monkeypatch, result)


def test_an_image_keeps_its_array_until_pillow_needs_it():
    """And is an image like any other: copied, pickled, cropped, drawn on, turned by its EXIF data."""
    data = jpeg()
    wanted = PIL.Image.open(io.BytesIO(data)).convert("RGB")
    found = IMAGE.decode(data)
    pixels = turbo_jpeg.pixels_of(found)
    assert pixels.shape == (151, 203, 4) and np.array_equal(pixels[:, :, :3], np.asarray(wanted)) and found.pixels is pixels
    assert (found.mode, found.size, found.format, found.getbands()) == ("RGB", (203, 151), "JPEG", ("R", "G", "B"))
    for change in (
        lambda p: p.copy(),
        lambda p: pickle.loads(pickle.dumps(p)),
        lambda p: p.crop((3, 4, 60, 70)),
        lambda p: p.resize((40, 30), PIL.Image.Resampling.BICUBIC),
        lambda p: p.rotate(20),
        lambda p: p.convert("L"),
        lambda p: PIL.ImageOps.mirror(p),
        lambda p: PIL.Image.blend(p, p.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT), 0.3),
        lambda p: PIL.Image.fromarray(np.asarray(p)),
    ):
        found = IMAGE.decode(data)
        assert np.array_equal(np.asarray(change(found)), np.asarray(change(wanted)))
        assert found.pixels is None and turbo_jpeg.pixels_of(found).shape == (151, 203, 3)
    found = IMAGE.decode(data)
    found.putpixel((0, 0), (1, 2, 3))
    assert found.getpixel((0, 0)) == (1, 2, 3) and turbo_jpeg.pixels_of(found)[0, 0].tolist() == [1, 2, 3]
    turned = IMAGE.decode(jpeg(exif=exif(6)))
    assert turned.size == (151, 203) and turbo_jpeg.pixels_of(turned).shape[:2] == (203, 151)


def test_a_tower_of_transformers_prepares_the_array():
    """The tensor of transformers' processor, from four channels as from Pillow's three."""
    processor = CLIPImageProcessor()
    preprocess = ImagePreprocess(processor)
    assert preprocess.resize is not None
    for size in ((203, 151), (640, 480), (150, 400)):
        data = jpeg(size)
        image = IMAGE.decode(data)
        found = preprocess(image)["pixel_values"]
        assert image.pixels is not None and found.is_contiguous()
        wanted = processor(PIL.Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(found, wanted, atol=2e-6)
        image.load()
        assert torch.equal(preprocess(image)["pixel_values"], found)


def test_several_threads_decode_at_once():
    files = [jpeg((200 + i, 150), quality=60 + i) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(IMAGE.decode, files))
    assert [np.asarray(p).tobytes() for p in found] == [np.asarray(IMAGE.decode(f)).tobytes() for f in files]


WITHOUT = """
import sys
sys.modules["simplejpeg"] = None
from mmtune import modalities
from mmtune.modalities import turbo_jpeg
picture = modalities.get("image").decode(sys.stdin.buffer.read())
print(turbo_jpeg._is_exact(), picture.size)
"""


def test_without_the_library_or_with_other_pixels_pillow_decodes(monkeypatch):
    done = subprocess.run([sys.executable, "-c", WITHOUT], input=jpeg(), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["False", "(203,", "151)"]
    real = turbo_jpeg._decode
    monkeypatch.setattr(turbo_jpeg, "_decode", lambda *a: real(*a) ^ 1)
    turbo_jpeg._is_exact.cache_clear()
    try:
        assert not turbo_jpeg._is_exact()
    finally:
        monkeypatch.undo()
        turbo_jpeg._is_exact.cache_clear()
