"""Sounds as pictures: a log spectrogram in colour, drawn with numpy alone."""

import numpy as np
from PIL import Image

# black, violet, red, orange, pale yellow: the anchors of matplotlib's "inferno"
_ANCHORS = np.array([(0, 0, 4), (64, 10, 103), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float64)
_RAMP = np.stack([np.interp(np.linspace(0, 5, 256), range(6), _ANCHORS[:, c]) for c in range(3)], 1).round().astype(np.uint8)


def spectrogram(samples: np.ndarray, rate: int, width: int, height: int, span_db: float = 70.0) -> Image.Image:
    """Power over time (left to right) and frequency (0 at the bottom, rate / 2 on top), `span_db` below the loudest, RGB."""
    window = max(32, round(rate * 0.016))
    hop = max(1, len(samples) // max(width, 1) // 2)
    padded = np.pad(np.asarray(samples, np.float64), (0, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[: max(1, len(samples)) : hop]
    power = np.abs(np.fft.rfft(frames * np.hanning(window), 2 * window)) ** 2
    db = 10 * np.log10(power + 1e-12)
    grey = ((db - db.max()) / span_db + 1).clip(0, 1)
    picture = Image.fromarray(_RAMP[(grey.T[::-1] * 255).round().astype(np.uint8)])
    return picture.resize((width, height), Image.Resampling.BILINEAR)
