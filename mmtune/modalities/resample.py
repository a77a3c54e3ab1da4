"""Resampling of sounds to another sample rate, by soxr (high quality) for any pair of rates."""

import numpy as np


def resample(samples: np.ndarray, rate: int, new_rate: int) -> np.ndarray:
    """[N] float32 at `rate` samples a second -> [M] float32 at `new_rate`; at least one sample."""
    if rate == new_rate:
        return samples
    import soxr

    resampled = soxr.resample(samples, rate, new_rate, quality="HQ")
    return resampled if len(resampled) else np.zeros(1, np.float32)
