"""64-bit signatures of content that survive re-encoding, for telling near duplicates: equal things filed as two.

Distances are chosen so that a re-encoded, resized or louder copy is caught and another picture or recording of the same
thing is not: a near key says "the same file in other clothes", never "alike".
"""

import hashlib
import re
import unicodedata
from functools import cache

import numpy as np
import PIL.Image as PILImage

NEAR_PICTURES = 4
NEAR_SOUNDS = 8
NEAR_TEXTS = 0
BANDS, FRAMES = 9, 9
WINDOW = 0.04  # seconds
TOP = 3000.0  # Hz: what a telephone, a phone's recorder and a studio all keep


def _bits(flags: np.ndarray) -> int:
    """64 booleans -> an int, the first one lowest."""
    return int(np.packbits(flags.ravel(), bitorder="little").view("<u8")[0])


@cache
def _cosines(size: int, count: int) -> np.ndarray:
    """The first `count` rows of the DCT-II of length `size`."""
    k, n = np.arange(count)[:, None], np.arange(size)
    return np.cos(np.pi * k * (2 * n + 1) / (2 * size))


def picture_key(picture: PILImage.Image) -> int | None:
    """Perceptual hash (pHash; Zauner 2010): signs of the 8 x 8 lowest frequencies of a grey 32 x 32 copy, against their
    median. None for a picture without structure, whose signs would be noise."""
    grey = np.asarray(picture.convert("L").resize((32, 32), PILImage.Resampling.LANCZOS), np.float64)
    if grey.std() < 2.0:
        return None
    dct = _cosines(32, 8)
    low = dct @ grey @ dct.T
    return _bits(low > np.median(low.ravel()[1:]))


def sound_key(samples: np.ndarray, rate: int) -> int | None:
    """Sign of how the energy of 9 bands changes from band to band and moment to moment (after Haitsma and Kalker 2002), over
    9 stretches of the whole sound. Loudness and rate do not matter. None for silence, or less than 9 stretches' worth."""
    window = round(rate * WINDOW)  # in seconds, so that two rates see the same frequencies at the same moments
    if len(samples) < window * (FRAMES + 3) // 4 or window < 16 or float(np.abs(samples).max()) < 1e-4:
        return None
    count = min(2048, 1 + int((len(samples) - window) / (window / 4)))
    starts = np.rint(np.linspace(0, len(samples) - window, count)).astype(np.int64)
    frames = samples[starts[:, None] + np.arange(window)] * np.hanning(window).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    hertz = np.fft.rfftfreq(window, 1 / rate)
    edges = np.geomspace(150.0, min(TOP, 0.45 * rate), BANDS + 1)
    energy = np.stack([power[:, (hertz >= a) & (hertz < b)].sum(1) for a, b in zip(edges[:-1], edges[1:], strict=True)], 1)
    stretch = np.minimum(np.arange(len(starts)) * FRAMES // len(starts), FRAMES - 1)
    table = np.stack([np.log(energy[stretch == t].mean(0) + 1e-12) for t in range(FRAMES)])
    change = np.diff(np.diff(table, axis=0), axis=1)
    return _bits(change > 0)


def text_key(text: str) -> int | None:
    """Hash of the words without case, accents' spelling, punctuation and spacing. None when no word is left."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", plain)
    if not words:
        return None
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "little")
