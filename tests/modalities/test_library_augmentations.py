"""Augmentations by torchaudio, audiomentations and torchvision: each against the library itself, seeded by the row alone."""

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from mmtune import modalities
from mmtune.data.loader.mixup import make_augmentation
from mmtune.errors import MmtuneError
from mmtune.modalities.audio_steps import AUDIOMENTATIONS, Speed
from mmtune.modalities.image_steps import CHANCE, NEED_TENSORS, TORCHVISION
from mmtune.modalities.sound import Sound
from mmtune.recipe.recipe import Recipe

RATE = 16_000
SOUND = Sound(
    np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32) + np.sin(np.arange(RATE) / 5).astype(np.float32) / 4, RATE
)
PICTURE = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
OWN_LIBRARIES = ("Limiter", "LoudnessNormalization", "Mp3Compression")
"""Transforms whose further libraries the tests' environment need not have."""
OPTIONS = {
    "CenterCrop": {"size": 32},
    "GaussianBlur": {"kernel_size": 5},
    "RandomAdjustSharpness": {"sharpness_factor": 2.0},
    "RandomAffine": {"degrees": 20, "translate": [0.1, 0.1], "scale": [0.8, 1.1], "shear": 5},
    "ColorJitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.1},
    "JPEG": {"quality": [20, 80]},
    "Pad": {"padding": 3},
    "RandomCrop": {"size": 32},
    "RandomPosterize": {"bits": 3},
    "RandomResize": {"min_size": 20, "max_size": 40},
    "RandomResizedCrop": {"size": 32},
    "RandomRotation": {"degrees": 20},
    "RandomShortestSize": {"min_size": [24, 40]},
    "RandomSolarize": {"threshold": 120},
    "ScaleJitter": {"target_size": [32, 32]},
}


def options_of(modality, steps):
    recipe = Recipe.parse({"model": "tiny:clip", "data": {"train": "x"}, "augment": {modality: steps}})
    return recipe.augment[modality]


def made(modality, *steps):
    return make_augmentation(options_of(modality, list(steps)), data=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sounds as background noise and impulse responses."""
    out = tmp_path_factory.mktemp("noises")
    for i in range(4):
        decay = np.exp(-np.arange(4000) / 500) if i % 2 else np.ones(4000)
        noise = np.random.default_rng(i).normal(0, 0.1, 4000) * decay
        (out / f"sub{i % 2}").mkdir(exist_ok=True)
        soundfile.write(out / f"sub{i % 2}" / f"{i}.wav", noise, RATE)
    return out


def test_speed_is_torchaudios_speed_and_changes_length_and_pitch():
    from torchaudio.functional import speed

    step = Speed((0.8, 1.25))
    lengths = set()
    for seed in range(12):
        factor = random.Random(seed).randint(80, 125) / 100
        ours = step(SOUND, random.Random(seed))
        expected = speed(
            torch.from_numpy(SOUND.samples), RATE, round(factor * RATE + 0.5) / RATE if factor * RATE % 1 else factor
        )[0]
        assert ours.rate == RATE and len(ours.samples) == -(-100 * RATE // round(100 * factor))
        if int(factor * RATE) == round(factor * RATE):
            np.testing.assert_array_equal(ours.samples, expected.numpy())
        lengths.add(len(ours.samples))
    assert len(lengths) > 5
    tone = Sound(np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32), RATE)
    fast = Speed((1.1, 1.1))(tone, random.Random(0)).samples
    assert np.abs(np.fft.rfft(fast)).argmax() * RATE / len(fast) == pytest.approx(1100, abs=2)


def test_a_plain_value_is_that_of_the_first_option(folder):
    for short, long in (
        ({"speed": [0.9, 1.1]}, {"speed": {"factor": [0.9, 1.1]}}),
        ({"background_noise": str(folder)}, {"background_noise": {"folder": str(folder)}}),
        ("pitch_shift", {"pitch_shift": {"semitones": [-2, 2]}}),
    ):
        a, b = (made("audio", s)(SOUND, random.Random(3)).samples for s in (short, long))
        np.testing.assert_array_equal(a, b)
    assert made("image", {"torchvision": "RandomErasing"})(PICTURE, random.Random(1)).size == PICTURE.size


@pytest.mark.parametrize(
    "step, name, arguments",
    [
        ({"time_stretch": [0.8, 1.2]}, "TimeStretch", {"min_rate": 0.8, "max_rate": 1.2, "leave_length_unchanged": False}),
        ({"pitch_shift": [-3, 3]}, "PitchShift", {"min_semitones": -3, "max_semitones": 3}),
        ({"gain": [-6, 6]}, "Gain", {"min_gain_db": -6, "max_gain_db": 6}),
        ({"low_pass": [1000, 4000]}, "LowPassFilter", {"min_cutoff_freq": 1000, "max_cutoff_freq": 4000}),
        ({"high_pass": [100, 400]}, "HighPassFilter", {"min_cutoff_freq": 100, "max_cutoff_freq": 400}),
        ({"audiomentations": {"name": "BandPassFilter"}}, "BandPassFilter", {}),
        ({"audiomentations": {"name": "AddColorNoise"}}, "AddColorNoise", {}),
        ({"audiomentations": {"name": "SevenBandParametricEQ"}}, "SevenBandParametricEQ", {}),
        ({"background_noise": {"snr_db": [5, 20]}}, "AddBackgroundNoise", {"min_snr_db": 5, "max_snr_db": 20}),
        ({"room": {}}, "ApplyImpulseResponse", {}),
    ],
    ids=lambda x: str(x) if isinstance(x, str) else "",
)
def test_sounds_equal_those_of_audiomentations(folder, step, name, arguments):
    import audiomentations

    key = next(iter(step))
    if key in ("background_noise", "room"):
        step[key]["folder"] = str(folder)
        arguments["sounds_path" if key == "background_noise" else "ir_path"] = sorted(folder.rglob("*.wav"))
    ours = made("audio", step)
    direct = getattr(audiomentations, name)(**arguments, p=1.0)
    different = set()
    for seed in range(4):
        drawn = random.Random(seed).getrandbits(32)
        random.seed(drawn), np.random.seed(drawn)
        expected = np.ascontiguousarray(direct(SOUND.samples, RATE))
        random.seed(77), np.random.seed(78)
        got = ours(SOUND, random.Random(seed)).samples
        np.testing.assert_array_equal(got, expected)
        different.add(got.tobytes())
    assert len(different) == 4


@pytest.mark.parametrize("name", TORCHVISION)
def test_pictures_equal_those_of_torchvision(name):
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional as F

    options = OPTIONS.get(name, {})
    ours = made("image", {"torchvision": {"name": name, **options}})
    direct = getattr(v2, name)(**options)
    if name in CHANCE:
        direct.p = 1.0
    for seed in range(3):
        torch.manual_seed(random.Random(seed).getrandbits(32))
        value = direct(F.pil_to_tensor(PICTURE) if name in NEED_TENSORS else PICTURE)
        expected = F.to_pil_image(value) if name in NEED_TENSORS else value
        torch.manual_seed(5)
        state = torch.get_rng_state()
        got = ours(PICTURE, random.Random(seed))
        assert got.mode == "RGB" and got.tobytes() == expected.convert("RGB").tobytes()
        assert torch.equal(torch.get_rng_state(), state)  # training's own draws are not disturbed


def audiomentations_options(name, folder):
    files = {"AddBackgroundNoise": "sounds_path", "AddShortNoises": "sounds_path", "ApplyImpulseResponse": "ir_path"}
    return {files[name]: str(folder)} if name in files else {"duration_seconds": 0.7} if name == "AdjustDuration" else {}


@pytest.mark.parametrize("name", [n for n in AUDIOMENTATIONS if n not in (*OWN_LIBRARIES, "RoomSimulator")])
def test_sounds_depend_on_the_row_alone_for_any_number_of_threads(folder, name):
    step = made("audio", {"audiomentations": {"name": name, **audiomentations_options(name, folder)}})
    rows = [Sound(np.roll(SOUND.samples, 100 * i), RATE) for i in range(8)]
    before, numpys = random.getstate(), np.random.get_state()[1].copy()
    one = [step(r, random.Random(i)).samples for i, r in enumerate(rows)]
    assert random.getstate() == before and (np.random.get_state()[1] == numpys).all()
    with ThreadPoolExecutor(4) as pool:
        four = list(pool.map(lambda i: step(rows[i], random.Random(i)).samples, range(8)))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "step", ["rand_augment", "trivial_augment", {"random_erasing": {"noise": True}}, {"torchvision": "AugMix"}]
)
def test_pictures_depend_on_the_row_alone_for_any_number_of_threads(step):
    augment = made("image", step)
    one = [augment(PICTURE, random.Random(i)).tobytes() for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: augment(PICTURE, random.Random(i)).tobytes(), range(12))) == one
    assert len(set(one)) > 3


def test_a_simulated_room_repeats_and_random_rays_are_refused():
    pytest.importorskip("pyroomacoustics", reason="RoomSimulator needs it")
    step = made("audio", {"audiomentations": {"name": "RoomSimulator"}, "p": 1})
    short = Sound(SOUND.samples[:4000], RATE)
    first = step(short, random.Random(1)).samples
    np.testing.assert_array_equal(step(short, random.Random(1)).samples, first)
    with pytest.raises(MmtuneError, match=r"augment\.audio\[0\]\.audiomentations: RoomSimulator: use_ray_tracing"):
        made("audio", {"audiomentations": {"name": "RoomSimulator", "use_ray_tracing": True}})


def test_p_is_the_share_of_rows_and_the_order_is_that_of_the_list():
    rare = made("text", {"templates": ["a {}"], "p": 0.25})
    share = np.mean([rare("bag", random.Random(i)) == "a bag" for i in range(2000)])
    assert share == pytest.approx(0.25, abs=0.03)
    both = made("text", {"templates": ["a photo of {}"]}, {"templates": ["look: {}"]})
    assert both("bag", random.Random(0)) == "look: a photo of bag"


def test_captions_lose_attributes_but_not_the_first_part():
    drop = made("text", {"drop_attributes": 0.5})
    seen = {drop("bag, red, 30 cm", random.Random(i)) for i in range(60)}
    assert seen == {"bag, red, 30 cm", "bag, red", "bag, 30 cm", "bag"}
    words = made("text", {"drop_attributes": {"probability": 1.0, "words": ["Red", "dark red"]}})
    assert words("a dark red bag, RED, tired", random.Random(0)) == "a bag, , tired"
    assert words("red", random.Random(0)) == "red"
    assert made("text", {"drop_words": 1.0})("a b", random.Random(0)) == "a b"


@pytest.mark.parametrize(
    "modality, step, message",
    [
        ("audio", {"sped": [0.9, 1.1]}, r"augment.audio\[0\]: no augmentation 'sped'; did you mean 'speed'"),
        ("audio", {"speed": "fast"}, r"augment.audio\[0\].speed.*fast"),
        ("audio", {"speed": [1.1, 0.9]}, r"augment.audio\[0\].speed: factor: \[1.1, 0.9\] is not a range"),
        ("audio", {"speed": {"fator": [1, 1]}}, r"augment.audio\[0\].speed.fator; did you mean .*factor"),
        ("audio", {"speed": [0.9, 1.1], "p": 2}, r"augment.audio\[0\].p: .*less than or equal to 1"),
        ("audio", {"speed": [0.9, 1.1], "gain": [0, 1]}, r"augment.audio\[0\]: one augmentation is needed, there are 2"),
        ("audio", {"background_noise": {"folder": "nowhere"}}, r"background_noise: folder: nowhere is not a directory"),
        ("audio", {"background_noise": {"snr_db": [1, 2]}}, r"augment.audio\[0\].background_noise.folder: is missing"),
        ("audio", {"audiomentations": {"name": "PichShift"}}, r"no transform 'PichShift'; did you mean 'PitchShift'"),
        (
            "audio",
            {"audiomentations": {"name": "Gain", "min_gain": 1}},
            r"Gain has no option 'min_gain'; did you mean 'min_gain_db'",
        ),
        ("audio", {"audiomentations": {"name": "Gain", "p": 0.5}}, r"Gain has no option 'p'; give p beside"),
        ("audio", {"audiomentations": {"name": "TimeMask", "max_band_part": 3}}, r"audiomentations: TimeMask: "),
        ("audio", {"audiomentations": {"name": "Gain", "min_gain_db": "loud"}}, r"audiomentations: Gain: TypeError"),
        ("image", {"torchvision": {"name": "ColorJiter"}}, r"no transform 'ColorJiter'; did you mean 'ColorJitter'"),
        ("image", {"torchvision": {"name": "AutoAugment", "policy": "imagnet"}}, r"policy: 'imagnet' is none of imagenet"),
        ("image", {"torchvision": {"name": "RandomCrop", "size": 200}}, r"torchvision: RandomCrop: ValueError"),
        ("image", {"rand_augment": {"magnitude": 40}}, r"augment.image\[0\].rand_augment: magnitude: 40"),
        ("image", {"random_erasing": {"scale": [0.5, 2]}}, r"random_erasing: scale: \[0.5, 2.0\] is not a range"),
        ("text", {"templates": ["a photo"]}, r"augment.text\[0\].templates: templates: 'a photo' does not contain"),
        ("text", {"templates": []}, r"templates: is empty"),
        ("text", {"drop_attributes": 2}, r"drop_attributes: probability: 2.0 is not a number from 0 to 1"),
    ],
)
def test_mistakes_are_one_line_before_training(modality, step, message):
    with pytest.raises(MmtuneError, match=message) as raised:
        made(modality, step)
    assert "\n" not in str(raised.value)


def test_steps_and_options_in_the_wrong_place_are_named_with_the_right_one():
    with pytest.raises(
        MmtuneError, match=r"augment.audio.speed: is a step: write augment: \{audio: \{steps: \[\{speed: ...\}\]\}\}"
    ):
        options_of("audio", {"speed": [0.9, 1.1]})
    with pytest.raises(MmtuneError, match=r"audio: shift is an option, no step: write audio: \{shift: ..., steps"):
        options_of("audio", [{"speed": [0.9, 1.1]}, {"shift": True}])
    both = options_of("audio", {"shift": True, "steps": [{"speed": [0.9, 1.1]}]})
    assert both.shift is True and [s.name for s in both.steps] == ["speed"]


def test_a_missing_library_names_the_extra(monkeypatch):
    for library, step in (("audiomentations", "pitch_shift"), ("torchaudio", "speed")):
        monkeypatch.setitem(__import__("sys").modules, library, None)
        with pytest.raises(MmtuneError, match=r'needs .*pip install "mmtune\[augment\]"'):
            made("audio", step)


def test_recipes_with_steps_are_written_and_read_again():
    steps = [{"speed": [0.9, 1.1], "p": 0.5}, "pitch_shift", {"audiomentations": {"name": "Gain", "min_gain_db": -3}}]
    recipe = Recipe.parse({"model": "tiny:clip", "data": {"train": "x"}, "augment": {"audio": {"shift": True, "steps": steps}}})
    written = recipe.model_dump(mode="json")
    assert written["augment"]["audio"]["steps"] == [
        {"speed": {"factor": [0.9, 1.1]}, "p": 0.5},
        {"pitch_shift": {"semitones": [-2.0, 2.0]}},
        {"audiomentations": {"name": "Gain", "min_gain_db": -3}},
    ]
    assert Recipe.parse(written) == recipe
    assert modalities.get("audio").augmentations["speed"]
