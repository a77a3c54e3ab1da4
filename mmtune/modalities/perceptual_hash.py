"""Perceptual hashes: 64-bit keys of content that survive re-encoding, to detect near-duplicate images, sounds and texts.

Distances (in bits) are chosen so that a re-encoded, resized or louder copy is a near duplicate, and another image or recording of
the same thing is not: equal hashes mean "the same file, stored differently", never "similar content".
"""

import hashlib
import re
import unicodedata
from functools import cache

import numpy as np
import PIL.Image as PILImage

IMAGE_DISTANCE = 4
SOUND_DISTANCE = 8
TEXT_DISTANCE = 0
BANDS, SEGMENTS = 9, 9
WINDOW_SECONDS = 0.04
MAX_HERTZ = 3000.0  # what a telephone, a phone's recorder and a studio all keep


def _bits(flags: np.ndarray) -> int:
    """64 booleans -> an int, the first one lowest."""
    return int(np.packbits(flags.ravel(), bitorder="little").view("<u8")[0])


@cache
def _cosines(size: int, count: int) -> np.ndarray:
    """The first `count` rows of the DCT-II of length `size`."""
    k, n = np.arange(count)[:, None], np.arange(size)
    return np.cos(np.pi * k * (2 * n + 1) / (2 * size))


def image_hash(image: PILImage.Image) -> int | None:
    """Perceptual hash (pHash; Zauner 2010): signs of the 8 x 8 lowest frequencies of a grey 32 x 32 copy, against their
    median. None for an image without structure, whose signs would be noise."""
    grey = np.asarray(image.convert("L").resize((32, 32), PILImage.Resampling.LANCZOS), np.float64)
    if grey.std() < 2.0:
        return None
    dct = _cosines(32, 8)
    low = dct @ grey @ dct.T
    return _bits(low > np.median(low.ravel()[1:]))


def sound_hash(samples: np.ndarray, rate: int) -> int | None:
    """Audio fingerprint (after Haitsma and Kalker 2002): signs of the differences of log energy between neighbouring bands and
    neighbouring segments, for BANDS bands and SEGMENTS segments of the whole sound. Independent of loudness and sample rate.
    None for silence, and for a sound shorter than the segments need."""
    window = round(rate * WINDOW_SECONDS)  # in seconds, so that two rates see the same frequencies at the same moments
    if len(samples) < window * (SEGMENTS + 3) // 4 or window < 16 or float(np.abs(samples).max()) < 1e-4:
        return None
    count = min(2048, 1 + int((len(samples) - window) / (window / 4)))
    starts = np.rint(np.linspace(0, len(samples) - window, count)).astype(np.int64)
    frames = samples[starts[:, None] + np.arange(window)] * np.hanning(window).astype(np.float32)
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    hertz = np.fft.rfftfreq(window, 1 / rate)
    edges = np.geomspace(150.0, min(MAX_HERTZ, 0.45 * rate), BANDS + 1)
    energy = np.stack([power[:, (hertz >= a) & (hertz < b)].sum(1) for a, b in zip(edges[:-1], edges[1:], strict=True)], 1)
    segment = np.minimum(np.arange(len(starts)) * SEGMENTS // len(starts), SEGMENTS - 1)
    table = np.stack([np.log(energy[segment == t].mean(0) + 1e-12) for t in range(SEGMENTS)])
    change = np.diff(np.diff(table, axis=0), axis=1)
    return _bits(change > 0)


def text_hash(text: str) -> int | None:
    """Hash of the words, without case, Unicode composition, punctuation and spacing. None when no word is left."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", plain)
    if not words:
        return None
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "little")
