"""A real collection with two versions (v1 live, v2 staged), the application over it, and a server process of its own."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import PIL.Image
import soundfile

from mmtune.index.collection import Collection
from mmtune.serve.app import create_app
from mmtune.serve.settings import Limits, Settings
from tests.support.corpora import COLOURS, PITCHES, packed

TOKEN = "a long secret of the tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
LOCAL = "http://127.0.0.1"


def collection(tmp_path_factory, rows: int = 24) -> Path:
    """v1 live and v2 staged, two models over the same items; made once, for reading (`copy_of` is for the rest)."""
    root = tmp_path_factory.getbasetemp() / f"serve-{rows}"
    path = root / "shelf"
    if (path / "live.json").exists():
        return path
    with Collection(path, create=True) as c:
        data = packed(root / "data", rows)
        c.build("tiny:all", data, quiet=True)
        c.promote("v1")
        c.build("tiny:all@3", quiet=True)
    return path


def copy_of(path: Path, root: Path) -> Path:
    """A copy that a test may change, without what servers of other tests counted and logged."""
    served = shutil.ignore_patterns("history", "feedback*.jsonl", "interleave*.jsonl")
    return Path(shutil.copytree(path, root / "shelf", ignore=served))


def picture(colour: str = "red", size: tuple[int, int] = (40, 40), kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", size, COLOURS[colour]).save(out, kind)
    return out.getvalue()


def sound(name: str = "red", seconds: float = 1.0, rate: int = 8000) -> bytes:
    out = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * PITCHES[name] * np.arange(round(rate * seconds)) / rate)
    soundfile.write(out, wave.astype(np.float32), rate, format="WAV")
    return out.getvalue()


def settings(**options) -> Settings:
    """No page unless asked for; limits by name."""
    limits = {k: options.pop(k) for k in list(options) if k in Limits.__dataclass_fields__}
    return Settings(**{"page": False, "watch": 0.1, "limits": Limits(**limits)} | options)


@contextlib.contextmanager
def client(path: Path, **options):
    """The application without a socket, its lifespan included; a client on loopback."""
    from starlette.testclient import TestClient

    app = create_app(path, settings(**options))
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as found:
        found.service = app.state.service
        yield found


class Process:
    """`mmtune serve` in a process: `url`, `said` (its standard error so far), `stop(signal)` -> exit status."""

    def __init__(self, path: Path, *options: str, env: dict[str, str] | None = None):
        command = [sys.executable, "-m", "mmtune", "serve", str(path), "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
        )
        self.said, self.url = "", ""
        for line in self.process.stderr:
            self.said += line
            if found := re.search(r"http://\S+", line):
                self.url = found.group()
                break
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.said += line

    def stop(self, signal: int, timeout: float = 60) -> int:
        self.process.send_signal(signal)
        return self.process.wait(timeout)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(30)
        self._reader.join(5)
        self.process.stdout.close()
        self.process.stderr.close()
