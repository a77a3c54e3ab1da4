"""Thin pictures are cropped before they are resized, to upstream's pixels; usual pictures go upstream's way."""

import numpy as np
import PIL.Image
import pytest
import torch

import mmtune
from mmtune.backbones.crop_before_resize import centre_crop_of_resized, shortest_edge_size
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.backbones.open_clip_image_preprocess import OpenClipImagePreprocess
from tests.support import checkpoints


def noise(width: int, height: int) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(2000, 1), (1, 1500), (700, 40), (31, 900), (2001, 100)])
@pytest.mark.parametrize(
    "resample", [PIL.Image.Resampling.BICUBIC, PIL.Image.Resampling.LANCZOS, PIL.Image.Resampling.BILINEAR]
)
def test_the_crop_equals_pillows_resize_then_crop(size, resample):
    picture = noise(*size)
    resized = shortest_edge_size(*size, 40)
    left, top = (round((side - 32) / 2) for side in resized)
    want = picture.resize(resized, resample).crop((left, top, left + 32, top + 32))
    found = centre_crop_of_resized(picture, resized, (32, 32), resample)
    assert found is not None
    assert np.abs(np.asarray(found, float) - np.asarray(want, float)).max() <= 1


def test_pictures_of_usual_shapes_are_resized_first():
    for size in ((640, 480), (480, 640), (1920, 1080), (300, 900)):
        assert centre_crop_of_resized(noise(*size), shortest_edge_size(*size, 32), (32, 32), 3) is None


@pytest.mark.parametrize("size", [(2000, 1), (1, 1500), (700, 40)])
def test_cropping_first_gives_upstreams_pixels(size, tmp_path):
    from transformers import CLIPImageProcessor

    model = mmtune.load(f"hf:{checkpoints.clip(tmp_path / 'clip')}", device="cpu")
    picture = noise(*size)
    want = CLIPImageProcessor.from_pretrained(tmp_path / "clip", use_fast=False)(images=picture, return_tensors="np")
    ours = model.towers["image"].preprocess(picture)["pixel_values"].numpy()
    assert np.abs(ours.reshape(want["pixel_values"][0].shape) - want["pixel_values"][0]).max() < 0.05


@pytest.mark.parametrize("options", [{"resample": 1}, {"resample": 3}, {"size": {"shortest_edge": 24}}])
def test_cropping_first_gives_the_pixels_of_upstreams_own_processor(options):
    """Also where the processor resizes as ours does not (Lanczos), and where the crop is larger than the resized side."""
    from transformers import CLIPImageProcessor

    size = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}
    processor = CLIPImageProcessor(**(size | options))
    preprocess, picture = ImagePreprocess(processor), noise(900, 30)
    want = processor(images=picture, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(picture)["pixel_values"], want, atol=0.05, rtol=0)


@pytest.mark.parametrize("edge", [20, 31, 32, 40])
def test_centre_crops_of_odd_surplus_are_upstreams(edge):
    """Half of an odd number of surplus pixels is rounded as transformers rounds it, also where the crop is larger than the image."""
    from transformers import CLIPImageProcessor

    processor = CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": 32, "width": 32})
    preprocess = ImagePreprocess(processor)
    assert preprocess.resize is not None
    for longer in range(edge, edge + 14):
        for picture in (noise(edge, longer), noise(longer, edge), noise(edge, 20 * longer)):
            want = processor(images=picture, return_tensors="pt")["pixel_values"][0]
            torch.testing.assert_close(preprocess(picture)["pixel_values"], want, atol=2e-6, rtol=0)


@pytest.mark.parametrize("options", [{}, {"interpolation": "bilinear"}, {"size": (32, 48)}, {"resize_mode": "squash"}])
def test_cropping_first_gives_open_clips_pixels(options):
    preprocess = OpenClipImagePreprocess({"size": 32} | options)
    for size in ((2000, 1), (1, 1500), (900, 60), (64, 48)):
        picture = noise(*size)
        torch.testing.assert_close(preprocess(picture)["image"], preprocess.transform(picture), atol=0.05, rtol=0)


def test_a_thin_picture_fits_into_a_tower_that_pads():
    """open_clip's resize_mode "longest" rounds the short side to 0, which Pillow refuses."""
    preprocess = OpenClipImagePreprocess({"size": 32, "resize_mode": "longest"})
    assert preprocess(noise(2000, 1))["image"].shape == (3, 32, 32)
