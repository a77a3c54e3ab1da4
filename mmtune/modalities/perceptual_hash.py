"""Compute 64-bit perceptual hashes of images, sounds and texts, to detect near duplicates.

A copy of a file that was re-encoded, resized or made louder has the same or nearly the same hash. The maximum distances below
are so small that two different photographs or recordings of the same thing are not near duplicates.
"""

import hashlib
import re
import unicodedata
from functools import cache

import numpy as np
import PIL.Image as PILImage

# Two values are near duplicates if their hashes differ in at most this many bits.
IMAGE_DISTANCE = 4
SOUND_DISTANCE = 8
TEXT_DISTANCE = 0
BANDS, SEGMENTS = 9, 9  # of `sound_hash`: their differences give 8 x 8 = 64 bits
WINDOW_SECONDS = 0.04
MAX_HERTZ = 3000.0  # frequencies up to this limit are preserved even by telephones


def _bits(flags: np.ndarray) -> int:
    """Pack 64 booleans into an int; the first one becomes the lowest bit."""
    return int(np.packbits(flags.ravel(), bitorder="little").view("<u8")[0])


@cache
def _cosines(size: int, count: int) -> np.ndarray:
    """Return the first `count` rows of the matrix of the discrete cosine transform (DCT-II) of length `size`."""
    k, n = np.arange(count)[:, None], np.arange(size)
    return np.cos(np.pi * k * (2 * n + 1) / (2 * size))


def image_hash(image: PILImage.Image) -> int | None:
    """Compute the perceptual hash of an image (pHash, Zauner 2010).

    Each bit says whether one of the 8 x 8 lowest frequencies of the image, scaled to 32 x 32 grey pixels, is above their
    median. Returns None for an almost uniform image, whose bits would be noise.
    """
    grey = np.asarray(image.convert("L").resize((32, 32), PILImage.Resampling.LANCZOS), np.float64)
    if grey.std() < 2.0:
        return None
    dct = _cosines(32, 8)
    low = dct @ grey @ dct.T
    return _bits(low > np.median(low.ravel()[1:]))


def sound_hash(samples: np.ndarray, rate: int) -> int | None:
    """Compute the perceptual hash of a sound, an audio fingerprint after Haitsma and Kalker (2002).

    The sound is divided into SEGMENTS segments of time and BANDS bands of frequency. Each bit is the sign of a difference of
    differences of log energy: between neighbouring bands, and between neighbouring segments. The hash does not depend on
    loudness or sample rate. Returns None for silence, and for a sound that is too short to be divided into the segments.

    samples: [N]
    rate: sample rate
    """
    window = round(rate * WINDOW_SECONDS)  # a fixed duration, so that the hash does not depend on the sample rate
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
    """Hash the words of a text, ignoring case, Unicode composition, punctuation and spacing. Returns None if it has no
    words."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = re.findall(r"\w+", plain)
    if not words:
        return None
    return int.from_bytes(hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest(), "little")
