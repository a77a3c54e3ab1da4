"""A small corpus with three modalities: squares of a colour, tones of a pitch, and the words for them. Packed for real."""

import csv
from pathlib import Path

import numpy as np
import PIL.Image
import soundfile

from mmtune.data.pack.pack import pack

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 180, 40),
    "blue": (40, 60, 210),
    "yellow": (220, 210, 40),
    "white": (235, 235, 235),
    "black": (20, 20, 20),
}
PITCHES = {"red": 220, "green": 440, "blue": 880, "yellow": 1320, "white": 1760, "black": 2640}


def source(out: Path, rows: int = 24, seed: int = 0, columns: tuple[str, ...] = ("image", "audio", "text")) -> Path:
    """Files and rows.csv. Colours in turn; every colour is a group; words are the same within a colour."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with open(out / "rows.csv", "w", newline="") as f:
        table = csv.DictWriter(f, ["id", *columns, "group", "shade"])
        table.writeheader()
        for i in range(rows):
            name = list(COLOURS)[i % len(COLOURS)]
            row = {"id": f"{seed}-{i:03d}", "group": name, "shade": "dark" if i % 2 else "light"}
            pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-20, 21, (40, 40, 3)), 0, 255).astype(np.uint8)
            if "image" in columns:
                PIL.Image.fromarray(pixels).save(out / f"{i}.png")
                row["image"] = f"{i}.png"
            if "audio" in columns:
                wave = np.sin(2 * np.pi * PITCHES[name] * np.arange(8000) / 8000) + rng.normal(0, 0.1, 8000)
                soundfile.write(out / f"{i}.flac", (0.3 * wave).astype(np.float32), 8000)
                row["audio"] = f"{i}.flac"
            if "text" in columns:
                row["text"] = f"a {name} square"
            table.writerow(row)
    return out / "rows.csv"


def packed(root: Path, rows: int = 24, seed: int = 0, columns: tuple[str, ...] = ("image", "audio", "text")) -> str:
    """The corpus as shards; returns the DATA string."""
    out = root / f"packed-{seed}-{rows}-{'-'.join(columns)}"
    if not out.exists():
        pack(source(root / f"source-{seed}-{rows}-{'-'.join(columns)}", rows, seed, columns), out)
    return str(out)
