"""A decoded sound: mono samples with their rate."""

from dataclasses import dataclass

import numpy as np

from mmtune.errors import Rejected
from mmtune.modalities.resample import resample


@dataclass(frozen=True, slots=True)
class Sound:
    """Mono samples [N] float32 (nominally -1..1) at `rate` samples a second."""

    samples: np.ndarray
    rate: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / self.rate

    def resampled(self, rate: int) -> "Sound":
        """This sound at another rate; itself when the rate is the same."""
        return self if rate == self.rate else Sound(resample(self.samples, self.rate, rate), rate)


def mono_sound(samples: np.ndarray, rate: int) -> Sound:
    """The mean of the channels of [N] or [N, C], integers scaled to -1..1. Raises Rejected for another shape, no samples,
    samples that are not finite, and a rate that is not positive."""
    samples = np.asarray(samples)
    if samples.dtype.kind in "iu":
        samples = samples.astype(np.float32) / float(np.iinfo(samples.dtype).max)
    samples = samples.astype(np.float32)
    if samples.ndim == 2:
        samples = samples.mean(axis=1, dtype=np.float32)
    if samples.ndim != 1:
        raise Rejected(f"a sound is [samples] or [samples, channels]; got shape {samples.shape}")
    if not len(samples):
        raise Rejected("no samples")
    if not np.isfinite(samples).all():
        raise Rejected("samples that are not finite (NaN or infinity)")
    if rate <= 0:
        raise Rejected(f"sample rate {rate} is not positive")
    return Sound(np.ascontiguousarray(samples), int(rate))
