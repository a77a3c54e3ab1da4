"""Training decodes a photo at the resolution that its tower needs; embedding always decodes it whole."""

import io
import math

import numpy as np
import PIL.Image
import pytest
import torch

from mmtune import modalities
from mmtune.data.loader.loader import Loader
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.embedding.embed_rows import embed_data
from mmtune.model.compose import from_spec

IMAGE = modalities.get("image")


def photo(width: int, height: int, kind: str = "JPEG", **options) -> bytes:
    rng = np.random.default_rng(0)
    soft = PIL.Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize((width, height), PIL.Image.Resampling.BICUBIC)
    out = io.BytesIO()
    soft.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("size, side", [((400, 300), 150), ((1000, 1400), 250), ((250, 255), 250), ((90, 100), 90)])
def test_a_jpeg_is_decoded_at_the_scale_that_leaves_twice_the_input_size(size, side):
    found = IMAGE.decode_scaled(photo(*size), 64.0)
    assert min(found.size) == side and found.mode == "RGB"
    whole = IMAGE.decode(photo(*size))
    assert whole.size == size
    a, b = (np.asarray(p.resize((64, 64), PIL.Image.Resampling.BICUBIC), np.float32) for p in (found, whole))
    assert np.abs(a - b).mean() < 2  # of 255


def test_other_formats_and_rotated_jpegs_are_decoded_right():
    assert IMAGE.decode_scaled(photo(400, 300, "PNG"), 64.0).size == (400, 300)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = photo(400, 300, exif=exif)
    assert IMAGE.decode(turned).size == (300, 400) and IMAGE.decode_scaled(turned, 64.0).size == (150, 200)


def test_an_augmentation_states_its_zoom():
    assert IMAGE.augment().zoom == 1 and IMAGE.augment(flip=True).zoom == 1
    assert IMAGE.augment(crop=0.25).zoom == pytest.approx(2 * 2**0.2)
    assert IMAGE.augment(blur=2.0).zoom == IMAGE.augment(trivial=True).zoom == math.inf


@pytest.fixture
def data(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(photo(400 + i, 400))
    (tmp_path / "rows.csv").write_text("image,text\n" + "".join(f"{i}.jpg,words {i}\n" for i in range(4)))
    pack(str(tmp_path / "rows.csv"), str(tmp_path / "packed"))
    return open_data(str(tmp_path / "packed"))


class Seen:
    """A preprocess that records the size of each signal."""

    def __init__(self, inner, enough):
        self.inner, self.input_size, self.sizes = inner, enough, []

    def __call__(self, signal, rng=None):
        self.sizes.append(signal.size)
        return self.inner(signal)

    def collate(self, items):
        return self.inner.collate(items)


def test_training_decodes_scaled_and_embedding_decodes_whole(data):
    model = from_spec("tiny:clip")
    tower = model.towers["image"]
    tower.preprocess = seen = Seen(tower.preprocess, 50.0)

    def sizes(augment):
        seen.sizes.clear()
        stream = Loader(WeightedConcat([data], [1.0]), {"image": seen}, {"image": augment} if augment else {})
        (batch,) = stream.epoch(0, [np.arange(4)])
        assert torch.isfinite(next(iter(batch.inputs["image"].values()))).all()
        return {min(s) for s in seen.sizes}

    assert sizes(None) == {100} and sizes(IMAGE.augment(flip=True)) == {100}
    assert sizes(IMAGE.augment(blur=1.0)) == {400}
    seen.sizes.clear()
    embed_data(model, data, ["image"])
    assert {min(s) for s in seen.sizes} == {400}
