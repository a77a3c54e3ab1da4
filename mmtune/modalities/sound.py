"""The class of decoded sounds: mono samples and their sample rate."""

from dataclasses import dataclass

import numpy as np

from mmtune.errors import Rejected
from mmtune.modalities.resample import resample


@dataclass(frozen=True, slots=True)
class Sound:
    """A mono sound.

    samples: [N] float32, usually from -1 to 1
    rate: samples a second
    """

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.rate

    def resampled(self, rate: int) -> "Sound":
        """Return this sound at another sample rate, or the same object if it already has that rate."""
        return self if rate == self.rate else Sound(resample(self.samples, self.rate, rate), rate)


INTEGER_SCALES = {"uint8": (128, 2**7), "int16": (0, 2**15), "int32": (0, 2**31), "int8": (0, 2**7), "uint16": (2**15, 2**15)}
"""Integer type of samples -> (value of silence, full scale), as in sound files of that type."""


def mono_sound(samples: np.ndarray, rate: int) -> Sound:
    """Convert samples to a mono `Sound` by averaging the channels.

    samples: [N], [N, C] or [C, N]. The shorter of two axes is taken as the channels; [N, C] is assumed if they are equally
        long. Floats are used unchanged; integers are scaled to -1..1 by their type (see INTEGER_SCALES).
    rate: samples a second

    Raises Rejected for an array of another shape or type, without samples or with samples that are not finite, and for a rate
    that is not positive.
    """
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2):
        raise Rejected(
            f"a sound must have the shape [samples], [samples, channels] or [channels, samples]; got {samples.shape}"
        )
    if not samples.size:
        raise Rejected("no samples")
    if samples.dtype.kind == "f":
        samples = samples.astype(np.float32)
    elif samples.dtype.name in INTEGER_SCALES:
        silence, full = INTEGER_SCALES[samples.dtype.name]
        samples = ((samples.astype(np.float64) - silence) / full).astype(np.float32)
    else:
        known = ", ".join(INTEGER_SCALES)
        raise Rejected(f"samples of type {samples.dtype}, whose full scale is not known; give floats in -1..1, or {known}")
    if samples.ndim == 2:
        samples = samples.mean(axis=0 if samples.shape[0] < samples.shape[1] else 1, dtype=np.float32)
    if not np.isfinite(samples).all():
        raise Rejected("samples that are not finite (NaN or infinity)")
    if rate <= 0:
        raise Rejected(f"sample rate {rate} is not positive")
    return Sound(np.ascontiguousarray(samples), int(rate))
