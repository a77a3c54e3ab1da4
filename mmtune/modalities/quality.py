"""What can be measured of a value without a model: its size, its defects, and signatures that near duplicates share.

One function a modality, in MEASURES; modalities that are not there are measured in bytes, unless their class has a method
`measure(data)` of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mmtune import modalities
from mmtune.contracts import Preprocess, Signal
from mmtune.modalities.perceptual_hash import sound_hash

MIN_SIDE = 32
"""Images with a shorter side of fewer pixels are called low resolution."""
FULL_SCALE = 0.999


@dataclass
class Measure:
    """Measurements of one value.

    size, with its unit; facts that the values of a corpus should agree on (sample rate); faults: defect -> one line about it;
    for near duplicates whichever fits the modality: signature [S] float32, of which no entry differs by more than 1; key, 64 bits
    of which at most the modality's `near_duplicate_distance` differ; exact, a string that is equal.
    """

    size: float
    unit: str
    facts: dict[str, int | float | str] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    signature: np.ndarray | None = None
    key: int | None = None
    exact: str | None = None


def measure(name: str, data: bytes) -> Measure:
    """Measure one value of modality `name`. Raises Rejected when it cannot be decoded."""
    own: Callable[[bytes], Measure] | None = getattr(modalities.get(name), "measure", None)
    return own(data) if own else MEASURES.get(name, _measure_bytes)(data)


def size(name: str, data: bytes) -> tuple[float, str]:
    """Only the size and its unit, e.g. (1.5, "seconds")."""
    own_size = SIZES.get(name)
    if own_size and not hasattr(modalities.get(name), "measure"):
        return own_size(data)
    measured = measure(name, data)
    return measured.size, measured.unit


def is_truncated(preprocess: Preprocess, signal: Signal) -> bool:
    """Whether the tokenizer of a tower cuts off the end of a text: neither leaving out its last word nor appending one changes
    the tower's input. False for what is not a string."""
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
        faults["constant"] = "one colour only"
    # Means of brightness over 32 x 32 fields and of colour over 16 x 16, in steps of 8 grey levels: JPEG's noise (1 to 5 on
    # photographs at quality 75) averages out, a stitch or another hue does not.
    from PIL.Image import Resampling

    channels = zip(image.convert("YCbCr").split(), (32, 16, 16), strict=True)
    fields = [np.asarray(c.resize((n, n), Resampling.BOX), np.float32).ravel() / 8 for c, n in channels]
    return Measure(float(image.width * image.height), "pixels", {}, faults, None if faults else np.concatenate(fields))


def _measure_sound(data: bytes) -> Measure:
    sound = modalities.get("audio").decode(data)
    x, rate = sound.samples, sound.rate
    faults = {}
    peak = float(np.abs(x).max(initial=0))
    if peak < 1e-4:
        faults["silent"] = f"peak {peak:.1e} of full scale"
    elif float(x.std()) < 1e-6:
        faults["constant"] = "all samples alike"
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
