"""Measure values without a model: their size, their defects, and signatures by which near duplicates are found.

MEASURES has one function per built-in modality. The class of any other modality can have a method `measure(data) -> Measure`;
without it, only the number of bytes is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmtune import modalities
from mmtune.contracts import Preprocess, Signal
from mmtune.modalities.perceptual_hash import sound_hash

MIN_SIDE = 32
"""Images whose shorter side has fewer pixels are reported as low resolution."""
FULL_SCALE = 0.999
"""Magnitude from which a sample counts as full scale, if the sound does not peak higher."""


@dataclass
class Measure:
    """The measurements of one value.

    size: its size
    unit: the unit of `size`
    facts: properties that should be the same for all values of a dataset, e.g. {"sample rate": 48000}
    faults: {name of a defect: one line about it}

    One of the following is used to find near duplicates, depending on the modality:

    signature: [S] float32; near duplicates differ by at most 1 in every entry, copies of another size by a little more
    key: a 64-bit hash; near duplicates differ in at most `Modality.near_duplicate_distance` bits
    exact: a string; near duplicates have the same string
    """

    size: float
    unit: str
    facts: dict[str, int | float | str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    signature: np.ndarray | None = None
    key: int | None = None
    exact: str | None = None


def measure(name: str, data: bytes) -> Measure:
    """Measure one value.

    name: its modality
    data: its bytes

    Raises Rejected if it cannot be decoded.
    """
    custom: Callable[[bytes], Measure] | None = getattr(modalities.get(name), "measure", None)
    return custom(data) if custom else MEASURES.get(name, _measure_bytes)(data)


def size(name: str, data: bytes) -> tuple[float, str]:
    """Measure only the size of a value. Returns the size and its unit, e.g. (1.5, "seconds")."""
    fast_size = SIZES.get(name)
    if fast_size and not hasattr(modalities.get(name), "measure"):
        return fast_size(data)
    measured = measure(name, data)
    return measured.size, measured.unit


def is_truncated(preprocess: Preprocess, signal: Signal) -> bool:
    """Whether the tokenizer of a tower truncates this text. Returns False for a signal that is not a string.

    A text counts as truncated if the tower's input stays the same when its last word is removed, and when a word is appended.
    """
    if not isinstance(signal, str) or len(signal) < 2:
        return False
    words = signal.rsplit(maxsplit=1)
    shorter = words[0] if len(words) > 1 else signal[:-1]
    inputs = preprocess(signal)

    def same(other: str) -> bool:
        others = preprocess(other)
        return all(x.shape == others[k].shape and bool((x == others[k]).all()) for k, x in inputs.items())

    return same(shorter) and same(signal + " a")


def _measure_bytes(data: bytes) -> Measure:
    return Measure(float(len(data)), "bytes")


def _measure_image(data: bytes) -> Measure:
    image = modalities.get("image").decode(data)
    faults = {}
    pixels = np.asarray(image, np.float32)
    if min(image.size) < MIN_SIDE:
        faults["low resolution"] = f"{image.width} x {image.height} pixels"
    if pixels.std() < 1:
        faults["constant"] = "the whole image has one colour"
    # The signature is the mean brightness of 32 x 32 tiles and the mean colour of 16 x 16 tiles. Its unit is 8 grey levels:
    # JPEG artefacts (1 to 5 grey levels in photographs at quality 75) stay below it, but a small visible detail or another hue
    # do not.
    from PIL.Image import Resampling

    channels = zip(image.convert("YCbCr").split(), (32, 16, 16), strict=True)
    tiles = [np.asarray(c.resize((n, n), Resampling.BOX), np.float32).ravel() / 8 for c, n in channels]
    return Measure(float(image.width * image.height), "pixels", {}, faults, None if faults else np.concatenate(tiles))


def _measure_sound(data: bytes) -> Measure:
    sound = modalities.get("audio").decode(data)
    x, rate = sound.samples, sound.rate
    faults = {}
    peak = float(np.abs(x).max(initial=0))
    if peak < 1e-4:
        faults["silent"] = f"peak {peak:.1e} of full scale"
    elif float(x.std()) < 1e-6:
        faults["constant"] = "all samples have the same value"
    elif (clipped := float((np.abs(x) >= FULL_SCALE * max(peak, FULL_SCALE)).mean())) > 0.001:
        faults["clipped"] = f"{clipped:.1%} of the samples at full scale"
    key = None if "silent" in faults or "constant" in faults else sound_hash(x, rate)
    return Measure(len(x) / rate, "seconds", {"sample rate": rate}, faults, key=key)


def _measure_text(data: bytes) -> Measure:
    text = modalities.get("text").decode(data)
    words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
    return Measure(float(len(text)), "characters", exact=" ".join(words) or None)


def _sound_size(data: bytes) -> tuple[float, str]:
    sound = modalities.get("audio").decode(data)
    return len(sound.samples) / sound.rate, "seconds"


def _image_size(data: bytes) -> tuple[float, str]:
    image = modalities.get("image").decode(data)
    return float(image.width * image.height), "pixels"


MEASURES: dict[str, Callable[[bytes], Measure]] = {"image": _measure_image, "audio": _measure_sound, "text": _measure_text}
SIZES: dict[str, Callable[[bytes], tuple[float, str]]] = {"image": _image_size, "audio": _sound_size}
"""Functions that measure only the size, for modalities in which the other measurements take long."""
