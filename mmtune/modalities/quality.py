"""What can be measured of a value without a model: its size, its faults, and a signature that near-duplicates share.

By modality name, with a fallback for names that are not here; a modality class may bring its own `measure(data)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.modalities.perceptual_hash import sound_key

SMALL_PIXELS = 32
FULL_SCALE = 0.999


@dataclass
class Measure:
    """size and its unit; facts that a corpus should agree on (rate, channels); faults by name with one line each;
    near-duplicates are told by what fits the kind, None where it has none: signature [S] float32, of which no entry differs by
    more than 1; key, 64 bits of which at most the modality's `near_duplicate_distance` differ; exact, a word that they share."""

    size: float
    unit: str
    facts: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    signature: np.ndarray | None = None
    key: int | None = None
    exact: str | None = None


def measure(name: str, data: bytes) -> Measure:
    """Measure one value of modality `name`. Raises Rejected when it cannot be decoded."""
    own = getattr(modalities.get(name), "measure", None)
    return own(data) if own else _TABLE.get(name, _bytes)(data)


def size(name: str, data: bytes) -> tuple[float, str]:
    """Only the size and its unit, e.g. (1.5, "seconds")."""
    quick = _SIZES.get(name)
    if quick and not hasattr(modalities.get(name), "measure"):
        return quick(data)
    found = measure(name, data)
    return found.size, found.unit


def cut(preprocess: Any, signal: Any) -> bool:
    """Whether a tower never sees the end of a string: neither leaving out its last word nor adding one changes the input.

    Asks the tower's own preprocessing, so it holds for any tokenizer; False for what is not a string.
    """
    if not isinstance(signal, str) or len(signal) < 2:
        return False
    words = signal.rsplit(maxsplit=1)
    shorter = words[0] if len(words) > 1 else signal[:-1]
    seen = preprocess(signal)

    def same(other: str) -> bool:
        found = preprocess(other)
        return all(x.shape == found[k].shape and bool((x == found[k]).all()) for k, x in seen.items())

    return same(shorter) and same(signal + " a")


def _bytes(data: bytes) -> Measure:
    return Measure(float(len(data)), "bytes")


def _picture(data: bytes) -> Measure:
    picture = modalities.get("image").decode(data)
    faults = {}
    pixels = np.asarray(picture, np.float32)
    if min(picture.size) < SMALL_PIXELS:
        faults["low resolution"] = f"{picture.width} x {picture.height} pixels"
    if pixels.std() < 1:
        faults["constant"] = "one colour only"
    # Means of brightness over 32 x 32 fields and of colour over 16 x 16, in steps of 8 grey levels: JPEG's noise (1 to 5 on
    # photographs at quality 75) averages out, a stitch or another hue does not.
    from PIL.Image import Resampling

    parts = zip(picture.convert("YCbCr").split(), (32, 16, 16), strict=True)
    fields = [np.asarray(p.resize((n, n), Resampling.BOX), np.float32).ravel() / 8 for p, n in parts]
    return Measure(float(picture.width * picture.height), "pixels", {}, faults, None if faults else np.concatenate(fields))


def _sound(data: bytes) -> Measure:
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
    key = None if "silent" in faults or "constant" in faults else sound_key(x, rate)
    return Measure(len(x) / rate, "seconds", {"sample rate": rate}, faults, key=key)


def _string(data: bytes) -> Measure:
    string = modalities.get("text").decode(data)
    words = "".join(c if c.isalnum() else " " for c in string.casefold()).split()
    return Measure(float(len(string)), "characters", exact=" ".join(words) or None)


def _sound_size(data: bytes) -> tuple[float, str]:
    sound = modalities.get("audio").decode(data)
    return len(sound.samples) / sound.rate, "seconds"


def _picture_size(data: bytes) -> tuple[float, str]:
    picture = modalities.get("image").decode(data)
    return float(picture.width * picture.height), "pixels"


_TABLE: dict[str, Callable[[bytes], Measure]] = {"image": _picture, "audio": _sound, "text": _string}
_SIZES: dict[str, Callable[[bytes], tuple[float, str]]] = {"image": _picture_size, "audio": _sound_size}
