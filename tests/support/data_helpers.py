"""Files, tables and damage for the tests of mmtune.data."""

import csv
import io
import os
import random
import signal
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image as PILImage

from mmtune.contracts import Modality, Option
from mmtune.errors import Rejected


def picture(seed: int, kind: str = "PNG", size: int = 24, mode: str = "RGB") -> bytes:
    """A small picture of noise (so that equal seeds and only they are equal)."""
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    PILImage.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)).convert(mode).save(out, kind)
    return out.getvalue()


def sound(seed: int, kind: str = "WAV", seconds: float = 0.05, rate: int = 8000, channels: int = 1) -> bytes:
    """A short noise."""
    rng = np.random.default_rng(seed)
    out = io.BytesIO()
    samples = rng.normal(0, 0.1, (int(seconds * rate), channels)).astype(np.float32)
    soundfile.write(out, samples, rate, format=kind, subtype="VORBIS" if kind == "OGG" else "PCM_16")
    return out.getvalue()


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as CSV; the first one's keys are the columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def catalog(folder: Path, n: int = 12, size: int = 24) -> Path:
    """folder/rows.csv: n rows of picture, caption, sku (three rows each), colour; the pictures beside it."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / "img" / f"{i:04d}.png").write_bytes(picture(i, size=size))
    row = "image text sku colour".split()
    values = [(f"img/{i:04d}.png", f"thing {i}", f"sku-{i // 3}", ["red", "blue"][i % 2]) for i in range(n)]
    return write_csv(folder / "rows.csv", [dict(zip(row, v, strict=True)) for v in values])


def tree(folder: Path, hidden: bool = False) -> dict[str, bytes]:
    """Every file below `folder` by relative path."""
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return files if hidden else {k: v for k, v in files.items() if not k.startswith(".pack/")}


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width: int, height: int, real: bool) -> bytes:
    """A PNG whose header claims `width` x `height`; `real`: with (highly compressed) pixels behind it."""
    rows = zlib.compress(bytes(1 + width) * height) if real else zlib.compress(b"\0" * 10)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def lying_wav(rng: random.Random) -> bytes:
    """A WAV whose header says something impossible about its data."""
    channels, rate, bits = (
        rng.choice([0, 1, 2, 1024, 65535]),
        rng.choice([0, 1, 8000, 2**31 - 1, 2**32 - 1]),
        rng.choice([0, 1, 8, 16, 64]),
    )
    size = rng.choice([0, 7, 2**31, 2**32 - 1])
    block = max(1, channels * bits // 8) % 65536
    form = struct.pack("<HHIIHH", rng.choice([1, 3, 17, 85, 65534]), channels, rate, (rate * block) % 2**32, block, bits)
    return (
        b"RIFF"
        + struct.pack("<I", rng.choice([size, 36]))
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + form
        + b"data"
        + struct.pack("<I", size)
        + bytes(64)
    )


def mangled(rng: random.Random, i: int) -> tuple[str, bytes]:
    """(suffix, bytes) of a file that went through something."""
    suffix = rng.choice(["png", "gif", "bmp", "tiff", "webp", "jpg", "wav", "flac", "ogg", "txt"])
    if suffix in ("wav", "flac", "ogg"):
        data = sound(i, suffix.upper(), 0.1)
    else:
        data = (
            picture(i, {"jpg": "JPEG"}.get(suffix, suffix.upper())) if suffix != "txt" else f"a caption of {i}, écru".encode()
        )
    how = i % 10
    if how == 0:
        data = data[: rng.randrange(len(data))]
    elif how in (1, 2):
        noisy = bytearray(data)
        for _ in range(rng.choice([1, 4, 40])):
            noisy[rng.randrange(len(noisy))] ^= 1 << rng.randrange(8)
        data = bytes(noisy)
    elif how == 3:
        suffix = rng.choice(["jpg", "png", "wav", "flac", "mp3", "txt", "tif", "exe", "JPG", "opus", "aiff", "ppm"])
    elif how == 4:
        data = rng.choice([b"", bytes(1), bytes(4096)])
    elif how == 5:
        suffix, data = (
            rng.choice(["jpg", "png", "gif", "wav", "ogg"]),
            b"This is not what its name says.\n" * rng.randrange(1, 40),
        )
    elif how == 6:
        suffix, data = "png", png_bomb(rng.choice([60_000, 2**31 - 1]), rng.choice([60_000, 2**31 - 1]), False)
        if i % 100 == 6:
            data = png_bomb(4_000, 4_000, True)
        elif rng.random() < 0.3:
            suffix, data = "bmp", picture(i, "BMP")[:18] + struct.pack("<ii", 2**30, -(2**30)) + picture(i, "BMP")[26:]
    elif how == 7:
        suffix, data = "wav", lying_wav(rng)
    elif how == 8:
        head = bytearray(data[:64])
        for k in range(4, len(head)):
            head[k] = rng.randrange(256)
        data = bytes(head) + data[64:]
    return suffix, data


class Trace(Modality):
    """A fourth modality: float32 vibration, with a decoder that can be told to misbehave."""

    name = "trace"
    extensions = ("f32",)
    columns = ("trace", "vibration")
    options = {"max_samples": Option(int, 1000, "reject longer traces")}

    def decode(self, data: bytes) -> np.ndarray:
        if data == b"segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if data == b"hang":
            time.sleep(1000)
        if data == b"boom":
            raise RuntimeError("a bug in a decoder")
        if len(data) % 4:
            raise Rejected("not a whole number of floats")
        return np.frombuffer(data, np.float32)

    def check(self, data: bytes, max_samples: int = 1000, **_: Any) -> None:
        if len(self.decode(data)) > max_samples:
            raise Rejected(f"too long: {len(data) // 4} samples (--max-samples)")
