"""Draw sounds for HTML pages: a spectrogram as a small PNG, a waveform as an SVG path."""

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import PIL.Image

LEVELS = 32  # colours of the palette; few colours make the PNG small
SPAN_DB = 70.0  # range from black to the brightest colour
# colours of matplotlib's colour map "inferno" at equal distances; the colours between them are interpolated
_ANCHORS = np.array([(0, 0, 4), (64, 10, 103), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)], np.float64)
_RAMP = np.stack([np.interp(np.linspace(0, 5, LEVELS), range(6), _ANCHORS[:, c]) for c in range(3)], 1).round()


def spectrogram(samples: np.ndarray, rate: int, width: int, height: int) -> bytes:
    """Draw a spectrogram (see `spectrogram_picture`) and return it as a PNG file."""
    out = io.BytesIO()
    spectrogram_picture(samples, rate, width, height).save(out, "PNG", optimize=True)
    return out.getvalue()


def spectrogram_picture(samples: np.ndarray, rate: int, width: int, height: int) -> "PIL.Image.Image":
    """Draw a spectrogram as a palette image of `width` x `height` pixels.

    Time runs to the right, frequency upwards, linearly from 0 to rate / 2. A pixel shows the mean power of all frames and
    frequencies that fall on it. Its colour is a level in dB: the brightest colour is the maximum, black is SPAN_DB below it.
    """
    import PIL.Image

    x = np.asarray(samples, np.float64)
    window = max(2 * height, round(rate * 0.016))  # 16 ms, but at least one frequency bin per row of pixels
    hop = max(1, min(window // 2, len(x) // (2 * width) or 1))
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(x, (0, window)), window)[: max(1, len(x)) : hop]
    shape = np.hanning(window)
    # assign each frame to a column of pixels; frames are transformed in blocks, so that an hour of sound fits in memory
    columns = np.minimum(np.arange(len(frames)) * width // max(len(frames), 1), width - 1)
    total, counts = np.zeros((width, window // 2 + 1)), np.bincount(columns, minlength=width)
    for start in range(0, len(frames), 4096):
        part = slice(start, start + 4096)
        np.add.at(total, columns[part], np.abs(np.fft.rfft(frames[part] * shape)) ** 2)
    filled = np.flatnonzero(counts)
    mean = (total[filled] / counts[filled, None])[np.searchsorted(filled, np.arange(width)).clip(max=len(filled) - 1)]
    edges = np.linspace(0, mean.shape[1], height + 1).astype(int)
    power = np.add.reduceat(mean, edges[:-1], axis=1) / np.diff(edges)
    db = 10 * np.log10(power + 1e-12)
    grey = ((db - db.max()) / SPAN_DB + 1).clip(0, 1)
    picture = PIL.Image.fromarray((grey.T[::-1] * (LEVELS - 1)).round().astype(np.uint8), mode="P")
    picture.putpalette(_RAMP.astype(np.uint8).tobytes())
    return picture


def frequency_label(hertz: float) -> str:
    """Return a frequency with its unit, e.g. "500 Hz" or "4 kHz"; 0 without a unit."""
    if hertz == 0:
        return "0"
    return f"{hertz:.3g} Hz" if hertz < 1000 else f"{hertz / 1000:.3g} kHz"


def waveform_path(samples: np.ndarray, columns: int) -> str:
    """Draw a waveform as an SVG path: a vertical line per column, from the maximum to the minimum of its samples.

    x runs from 0 to `columns`, y from -1 (top) to 1 (bottom). The sound is scaled so that its peak is 1.
    """
    x = np.asarray(samples, np.float64)
    edges = np.linspace(0, len(x), min(columns, len(x)) + 1).astype(int)
    high, low = np.maximum.reduceat(x, edges[:-1]), np.minimum.reduceat(x, edges[:-1])
    scale = max(float(np.abs(x).max(initial=0)), 1e-9)
    step = columns / len(high)
    return "".join(
        f"M{i * step + step / 2:.5g} {-h / scale:.2f}V{-b / scale + 0.01:.2f}"
        for i, (h, b) in enumerate(zip(high, low, strict=True))
    )
