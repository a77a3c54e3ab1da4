"""Runs to report on: tiny models trained for real on squares of a colour, tones of a pitch, and the words for them."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
import soundfile

import mmtune
from tests.support import corpora
from tests.support.evaluate_helpers import shards


def long_sound(rng: np.random.Generator, seconds: float = 30, rate: int = 16000) -> bytes:
    """White noise, which no codec makes small, as 8-bit WAV."""
    out = io.BytesIO()
    soundfile.write(out, rng.uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32), rate, format="WAV", subtype="PCM_U8")
    return out.getvalue()


def big_photo(rng: np.random.Generator, size: tuple[int, int] = (1600, 1200)) -> bytes:
    """A JPEG with grain at every scale, the thumbnail's too."""
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (120, 160, 3), np.uint8)).resize(size, PIL.Image.Resampling.NEAREST)
    out = io.BytesIO()
    coarse.save(out, "JPEG", quality=90, comment=rng.bytes(16))
    return out.getvalue()


def long_corpus(place: Path, rows: int, seconds: float = 30) -> str:
    """Shards of `rows` different big photos and long sounds of five rows a group; returns DATA."""
    rng = np.random.default_rng(0)
    photos = [big_photo(rng) for _ in range(min(rows, 20))]
    made = []
    for i in range(rows):
        photo = photos[i % len(photos)][:-2] + b"\xff\xfe\x00\x08" + f"{i:06d}".encode() + b"\xff\xd9"  # a comment of its own
        made.append({"id": f"r{i}", "group": f"g{i // 5}", "jpg": photo, "wav": long_sound(rng, seconds)})
    return shards(place, made)


def run(root: Path, columns: tuple[str, ...], model: str = "tiny:clip", epochs: int = 6, **changes) -> Path:
    """A finished RUN directory."""
    directory = root / f"run-{'-'.join(columns)}"
    recipe = {
        "model": model,
        "data": {"train": corpora.packed(root, columns=columns), "val": corpora.packed(root, 18, 1, columns)},
        "train": {"epochs": epochs, "batch_size": 8, "lr": 1e-3, "warmup": 0.1, "precision": "fp32"},
        "run": {"dir": str(directory)},
        **changes,
    }
    mmtune.train(recipe, quiet=True)
    return directory
