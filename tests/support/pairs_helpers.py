"""Small pictures, sounds and tables for the tests of `mmtune pairs`."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import soundfile


def picture(seed: int, side: int = 40, kind: str = "PNG", **options: object) -> bytes:
    """A picture of smooth random colours: another one for each seed, the same structure at each size and in each format."""
    small = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), np.uint8)
    image = PIL.Image.fromarray(small).resize((side, side), PIL.Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pictures(folder: Path, count: int, first: int = 0) -> list[str]:
    """Write 0.png, 1.png ... into a folder; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{n}.png" for n in range(first, first + count)]
    for n, name in enumerate(names, first):
        (folder / name).write_bytes(picture(n))
    return names


def tone(path: Path, bursts: list[tuple[float, float]], seconds: float, rate: int = 8000, hertz: float = 600.0) -> None:
    """Write a recording: faint noise with tones from start to end (seconds) of each burst."""
    time = np.arange(round(seconds * rate)) / rate
    samples = 0.001 * np.random.default_rng(0).standard_normal(len(time))
    for n, (start, end) in enumerate(bursts):
        on = (time >= start) & (time < end)
        samples[on] += 0.3 * np.sin(2 * np.pi * hertz * (1 + 0.2 * n) * time[on])
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples.astype(np.float32), rate)


def rows_of(directory: Path) -> list[dict]:
    """The rows of pairs.parquet, without cells that are null."""
    table = pq.read_table(directory / "pairs.parquet")
    return [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()]


def dropped(directory: Path) -> dict[str, int]:
    """Reason -> count of dropped.json."""
    document = json.loads((directory / "dropped.json").read_bytes())
    return {d["reason"]: d["count"] for d in document["dropped"]}
