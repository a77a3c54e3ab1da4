"""Masks, mixing and the changes of pictures: what they hide, what they leave, and that only the generator decides."""

import random

import numpy as np
import PIL.Image
import pytest
import torch

from mmtune import modalities
from mmtune.errors import RecipeError
from mmtune.modalities.audio_augmentation import mask_spectrogram, mix_sounds
from mmtune.modalities.image_augmentation import TRIVIAL_OPERATIONS

image, audio = modalities.get("image"), modalities.get("audio")
RATE = 8000


def tones(*hertz, seconds=1.0):
    t = np.arange(int(RATE * seconds)) / RATE
    return sum(np.sin(2 * np.pi * f * t) for f in hertz).astype(np.float32) / len(hertz)


def levels(x, size=256):
    return torch.stft(torch.from_numpy(x), size, size // 4, window=torch.hann_window(size), return_complex=True).abs().numpy()


def test_a_frequency_mask_hides_one_band_and_leaves_the_rest():
    x = tones(300, 1000, 3000)
    hidden = 0
    for seed in range(40):
        y = mask_spectrogram(x, RATE, 0.0, 0.5, 1, random.Random(seed))
        assert len(y) == len(x) and y.dtype == np.float32
        share = [np.abs(np.fft.rfft(y))[f] / np.abs(np.fft.rfft(x))[f] for f in (300, 1000, 3000)]
        gone = [s < 0.2 for s in share]
        assert all(g or s > 0.8 for g, s in zip(gone, share, strict=True) if s < 0.2 or s > 0.8)
        hidden += any(gone)
        if gone[0] and gone[2]:
            assert gone[1]  # one band: what lies between is hidden, too
    assert hidden > 10
    np.testing.assert_allclose(mask_spectrogram(x, RATE, 0.0, 1e-9, 1, random.Random(0))[200:-200], x[200:-200], atol=1e-4)


def test_a_time_mask_hides_one_stretch_at_the_mean_level():
    rng = np.random.default_rng(0)
    x = rng.normal(0, 0.2, RATE).astype(np.float32)
    x[: RATE // 2] *= 0.01
    for seed in range(10):
        y = mask_spectrogram(x, RATE, 0.3, 0.0, 1, random.Random(seed))
        moved = np.flatnonzero(np.abs(levels(y) - levels(x)).max(0) > 0.05 * levels(x).max())
        if len(moved):
            assert moved[-1] - moved[0] < 0.3 * levels(x).shape[1] + 8  # a stretch, and the frames that overlap it
    mean = np.exp(np.log(levels(x).clip(1e-7)).mean())
    y = mask_spectrogram(x, RATE, 1.0, 0.0, 30, random.Random(1))  # all of it, thirty times over
    inner = levels(y)[:, 20:-20]
    assert 0.2 * mean < np.median(inner) < 5 * mean
    short = x[:100]
    assert mask_spectrogram(short, RATE, 0.5, 0.5, 1, random.Random(0)) is short


def test_mixing_keeps_loudness_and_gives_the_other_its_share():
    a, b = tones(300), tones(2000)
    for share in (0.1, 0.4):
        y = mix_sounds(a, 7 * b, share)
        power = np.abs(np.fft.rfft(y)) ** 2
        assert power[2000] / (power[300] + power[2000]) == pytest.approx(share, abs=0.01)
        assert np.sqrt(np.mean(y**2)) == pytest.approx(np.sqrt(np.mean(a**2)), rel=0.02)
    assert len(mix_sounds(a, b[:500], 0.2)) == len(a) and mix_sounds(a, np.zeros(10, np.float32), 0.3) is a
    red, blue = PIL.Image.new("RGB", (9, 7), "red"), PIL.Image.new("RGB", (4, 4), "blue")
    assert image.mix(red, blue, 0.25).getpixel((3, 3)) == (191, 0, 63) and image.mix(red, blue, 0.25).size == (9, 7)
    from mmtune.modalities.audio import Sound

    both = audio.mix(Sound(a, RATE), Sound(np.repeat(b, 2), 2 * RATE), 0.2)
    assert both.rate == RATE and len(both.samples) == len(a)


@pytest.mark.parametrize(
    "options",
    [
        {"trivial": True},
        {"perspective": 0.5},
        {"blur": 2.0},
        {"grey": 0.5},
        {"erase": 0.4},
        {"crop": 0.6, "trivial": True, "erase": 0.2},
    ],
    ids=lambda o: "-".join(o),
)
def test_changes_are_a_function_of_their_generator_alone(options):
    picture = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
    untouched, augment = picture.tobytes(), image.augment(**options)

    def numbers(seed):
        return np.asarray(augment(picture, random.Random(seed))).tobytes()

    before = torch.get_rng_state()
    first = [numbers(s) for s in range(8)]
    torch.manual_seed(123), np.random.seed(5), random.seed(9)
    assert [numbers(s) for s in range(8)] == first and len(set(first)) > 1
    torch.set_rng_state(before)
    numbers(1)
    assert torch.equal(torch.get_rng_state(), before)  # training's own draws are not disturbed
    assert picture.tobytes() == untouched


def test_every_trivial_change_gives_a_picture_of_the_same_size():
    from torchvision.transforms.v2 import functional as F

    picture = PIL.Image.effect_noise((33, 21), 90).convert("RGB")
    for change in TRIVIAL_OPERATIONS:
        for seed in range(4):
            out = change(F, picture, random.Random(seed))
            assert out.size == (33, 21) and out.mode == "RGB"
    assert len(TRIVIAL_OPERATIONS) == 12


def test_erased_grey_and_blurred_are_what_they_say():
    red = PIL.Image.new("RGB", (40, 40), (200, 10, 10))
    for seed in range(6):
        out = np.asarray(image.augment(erase=0.3)(red, random.Random(seed)))
        assert 0 < (out != (200, 10, 10)).any(2).mean() <= 0.35
    grey = np.asarray(image.augment(grey=1.0)(red, random.Random(0)))
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 1] == grey[..., 2]).all()
    noise = PIL.Image.effect_noise((40, 40), 90).convert("RGB")
    assert np.asarray(image.augment(blur=3.0)(noise, random.Random(0))).std() < np.asarray(noise).std() / 1.5


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (audio, {"mask_time": 1.5}, "augment.audio.mask_time: 1.5 is not a share"),
        (audio, {"masks": 0, "mask_freq": 0.1}, "augment.audio.masks: 0 is not 1 or more"),
        (image, {"erase": -0.1}, "augment.image.erase: -0.1 is not a share"),
    ],
)
def test_bad_options_name_their_key(kind, options, message):
    with pytest.raises(RecipeError, match=message):
        kind.augment(**options)
