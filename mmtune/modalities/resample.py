"""Resample sounds to another sample rate, by soxr in its setting "high quality"."""

import numpy as np


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """Resample samples [N] float32 from `rate` to `new_rate` (samples a second): [M] float32 with M >= 1."""
    if rate == new_rate:
        return samples
    import soxr

    resampled = soxr.resample(samples, rate, new_rate, quality="HQ")
    return resampled if len(resampled) else np.zeros(1, np.float32)
