"""Photos and clips to measure with, drawn from a seed: JPEGs of 192 to 400 px, FLACs of 1 s at 12 kHz, words for each."""

import csv
from pathlib import Path

import numpy as np

COLOURS = ("red", "green", "blue", "yellow", "brown", "grey", "orange", "violet", "black", "white")
THINGS = ("boot", "jar", "crate", "lamp", "bolt", "bottle", "valve", "basket", "chair", "kettle", "ladder", "brush")
PLACES = ("on a shelf", "in a box", "near the door", "under the table", "by the window", "at the back of the store")
SOUNDS = ("hum", "rattle", "whine", "click", "grinding", "squeal", "knock", "hiss")


def draw_photo(rng: np.random.Generator):
    """A PIL picture: a soft background, some shapes, the grain of a sensor. Its JPEG is as large as a photo's."""
    from PIL import Image, ImageDraw

    width, height = rng.integers(192, 401, 2).tolist()
    soft = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(soft)
    for _ in range(12):
        x, y, w, h = rng.integers(0, (width, height, width // 2, height // 2)).tolist()
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8))


def draw_clip(rng: np.random.Generator) -> np.ndarray:
    """12,000 samples: a few decaying tones over noise."""
    t = np.arange(12_000) / 12_000
    pitch, decay = rng.uniform(40, 5000, (5, 1)), rng.uniform(0, 8, (5, 1))
    tones = (np.sin(2 * np.pi * pitch * t) * np.exp(-decay * t)).sum(0)
    return (0.12 * tones + rng.normal(0, 0.05, len(t))).astype(np.float32)


def words(kind: str, number: int, rng: np.random.Generator) -> str:
    """About a dozen words, different for every number."""
    a, b, c = (str(rng.choice(x)) for x in (COLOURS, THINGS, PLACES))
    what = f"a photo of a {a} {b}" if kind == "image" else f"the {rng.choice(SOUNDS)} and {rng.choice(SOUNDS)} of a {a} {b}"
    return f"{what} {c}, number {number}"


def corpus(directory: Path, kind: str, rows: int, rows_per_text: int = 1) -> tuple[Path, Path]:
    """Write it once; returns (the table, packed shards of it). kind: image or audio; `rows_per_text` rows share their words."""
    import soundfile

    from mmtune.data.pack.pack import pack

    table, shards = directory / "rows.csv", directory / "shards"
    if (shards / "index.json").exists():
        return table, shards
    (directory / "files").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    texts = [words(kind, i, rng) for i in range(-(-rows // rows_per_text))]
    with open(table, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow([kind, "text"])
        for i, which in enumerate(rng.permutation(rows) // rows_per_text):
            name = f"files/{i:06d}.{'jpg' if kind == 'image' else 'flac'}"
            if kind == "image":
                draw_photo(rng).save(directory / name, quality=90)
            else:
                soundfile.write(directory / name, draw_clip(rng), 12_000)
            out.writerow([name, texts[which]])
    pack(str(table), str(shards), shard_size=max(1 << 20, sum(p.stat().st_size for p in (directory / "files").iterdir()) // 4))
    return table, shards
