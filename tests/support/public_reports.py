"""Inputs of the tests in tests/cases: pictures, members of a tar, vectors that `embed` wrote."""

import io
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq


def png(seed: int = 0, size: tuple[int, int] = (24, 24)) -> bytes:
    """A noisy picture, another one for each seed."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def embedded(directory: Path, modality: str) -> dict[str, np.ndarray]:
    """{row id: vector} of an `embed` directory."""
    found = {}
    for part in sorted((directory / modality).glob("*.parquet")):
        table = pq.read_table(part)
        found |= dict(zip(table["id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True))
    return found
