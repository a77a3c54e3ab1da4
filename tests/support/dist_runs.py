"""Training runs under torchrun in tests: start, wait, kill, and read what they wrote."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def launch(launcher: list[str], path: Path, run: Path, *more: str) -> subprocess.Popen:
    command = [*launcher, "-m", "mmtune", "train", str(path), f"run.dir={run}", "--quiet", "--json", *more]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def done(process: subprocess.Popen) -> dict:
    try:
        out, err = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        end(process)
        raise
    assert process.returncode == 0, err[-3000:]
    return json.loads(out)  # one document: only the first process speaks


def end(process: subprocess.Popen) -> None:
    for p in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        p.kill()
    process.communicate(timeout=60)


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> bytes:
    """The bytes of all weights of the artifact."""
    return b"".join(path.read_bytes() for path in _weight_files(run))


def _weight_files(run: Path) -> list[Path]:
    found = sorted((run / "artifact").rglob("*.safetensors"))
    assert found, run
    return found


def wait_for_step(run: Path, step: int) -> None:
    end = time.time() + 120
    while time.time() < end:
        if (run / "metrics.jsonl").exists() and any(r["step"] >= step for r in lines(run)):
            return
        time.sleep(0.02)
    raise AssertionError("the run did not get that far")


def near(run: Path, other: Path, limit: float) -> None:
    """The weights of the two artifacts are equal up to rounding."""
    a, b = ({(p.name, k): t for p in _weight_files(r) for k, t in load_file(p).items()} for r in (run, other))
    assert a.keys() == b.keys()
    for name, one in a.items():
        assert one.shape == b[name].shape and float((one - b[name]).abs().max()) <= limit, name
