"""An epoch of `data.read: stream` over many tiny rows, and `eval --read stream` on them: memory over time, rows a second.

    STREAM_ROWS=5000000 python -m pytest tests/benchmarks/test_bench_stream_epoch.py -m bench -s

The rows have a caption and a point of eight numbers, in .tar.zst shards of 5,000 rows (2 GB for 5 million rows, 15 GB unpacked); they are
made here and deleted afterwards. The towers are one linear layer each, so reading is most of the work. One JSON line: `memory_mb` is the
proportional memory (PSS) of the process and its children without mapped files of the disk, as the mean over each tenth of the run.
STREAM_WORKERS and STREAM_WORKER_KIND are `data.workers` and `data.worker_kind`.
"""

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import zstandard
from torch import nn

from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.modalities import Modality, Rejected

ROWS, SHARD, BATCH = int(os.environ.get("STREAM_ROWS", "100000")), 5000, 1024
WORKERS, KIND = os.environ.get("STREAM_WORKERS", "1"), os.environ.get("STREAM_WORKER_KIND", "threads")
NAME = "tests.benchmarks.test_bench_stream_epoch"


class Point(Modality):
    """Eight numbers, as raw little-endian float32."""

    name, extensions, columns = "point", ("point",), ("point",)

    def decode(self, data: bytes) -> np.ndarray:
        if len(data) != 32:
            raise Rejected("not eight numbers")
        return np.frombuffer(data, "<f4")


class PointInput:
    def __call__(self, signal, rng=None):
        return {"x": torch.from_numpy(signal.copy())}

    def collate(self, items):
        return {"x": torch.stack([i["x"] for i in items])}


class TextInput:
    """The numbers of a caption's words."""

    def __call__(self, signal, rng=None):
        return {"x": torch.tensor([float(word) for word in signal.split()[1:5]])}

    collate = PointInput.collate


def load(place: str) -> Backbone:
    module = nn.Module()
    torch.manual_seed(0)
    module.point, module.text = nn.Linear(8, 16), nn.Linear(4, 16)
    module.register_parameter("scale", nn.Parameter(torch.tensor(2.66)))
    towers = {
        "point": Tower("point", 16, PointInput(), lambda x: module.point(x["x"]), [module.point]),
        "text": Tower("text", 16, TextInput(), lambda x: module.text(x["x"]), [module.text]),
    }
    return Backbone(NAME, module, towers, [LogitScale(module.scale, None, ["point->text", "text->point"])], {"place": b"16"})


def rebuild(directory) -> Backbone:
    return load("16")


def shards(out: Path) -> None:
    """Write the corpus. Headers are the first one of `tarfile` with other digits, because `tarfile` takes 50 microseconds for each."""
    out.mkdir()
    pad, header = {n: bytes(-n % 512) for n in range(512)}, {}
    for number in range(-(-ROWS // SHARD)):
        rng, raw = np.random.default_rng(number), io.BytesIO()
        for i in range(number * SHARD, min(ROWS, (number + 1) * SHARD)):
            point = rng.standard_normal(8, dtype=np.float32)
            caption = "point " + " ".join(f"{v:.2f}" for v in point[:4].tolist())
            about = f'{{"id": "row-{i:08d}", "group": "group-{i // 4:08d}", "line": {i}}}'
            for end, value in (("point", point.tobytes()), ("json", about.encode()), ("txt", caption.encode())):
                if (end, len(value)) not in header:
                    member = tarfile.TarInfo(f"00000000.{end}")
                    member.size = len(value)
                    made = member.tobuf(tarfile.USTAR_FORMAT)
                    header[end, len(value)] = made, int(made[148:154], 8)
                made, checksum = header[end, len(value)]
                digits = f"{i:08d}".encode()
                checksum += sum(digits) - 8 * ord("0")
                raw.write(digits + made[8:148] + f"{checksum:06o}".encode() + made[154:] + value + pad[len(value) % 512])
        raw.write(bytes(1024))
        (out / f"shard-{number:06d}.tar.zst").write_bytes(zstandard.compress(raw.getbuffer(), 1))


TRAIN = f"""
import sys
import mmtune
mmtune.register_modality("point", "{NAME}:Point")
mmtune.train({{"model": "{NAME}:16", "pairs": [["point", "text"]], "run": {{"dir": sys.argv[2]}},
    "data": {{"train": sys.argv[1] + "/shard-{{000000..%06d}}.tar.zst" % (int(sys.argv[3]) - 1), "read": "stream", "val": None,
             "shuffle_buffer": 4096, "workers": int(sys.argv[5]), "worker_kind": sys.argv[6]}},
    "train": {{"samples": int(sys.argv[4]), "batch_size": {BATCH}, "precision": "fp32", "lr": 1e-3}}}})
"""


def memory(root: psutil.Process) -> float:
    """Proportional memory of a process and its children, in MB, without pages that are mapped from files."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        try:
            fields = [line.split() for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().split("\n")]
            total += sum(int(f[1]) for f in fields if f and f[0] in ("Pss_Anon:", "Pss_Shmem:")) / 1024
        except (OSError, psutil.Error):
            continue
    return total


EVAL = f"""
import sys
import mmtune
mmtune.register_modality("point", "{NAME}:Point")
pattern = sys.argv[1] + "/shard-{{000000..%06d}}.tar.zst" % (int(sys.argv[3]) - 1)
result = mmtune.evaluate("{NAME}:16", pattern, read="stream", queries=2000)
print(result.to_dict()["directions"]["point->text"]["metrics"]["map"])
"""


def watched(command: list[str], out: Path, started: Callable[[], bool]) -> tuple[list[float], float, float]:
    """Run a command; returns (MB each half second once it has started, seconds until then, seconds of all of it)."""
    begin, opened, samples = time.perf_counter(), 0.0, []
    with open(out, "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=Path(__file__).parents[2])
        root = psutil.Process(run.pid)
        while run.poll() is None:
            if started():
                opened = opened or time.perf_counter() - begin
                samples.append(memory(root))
            time.sleep(0.5)
    assert run.returncode == 0, out.read_text()[-3000:]
    return samples, opened, time.perf_counter() - begin


def tenths(samples: list[float]) -> list[int]:
    return [round(statistics.mean(part)) for part in np.array_split(np.array(samples), 10) if len(part)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """(directory of the shards, their number, seconds that making them took)"""
    out, begin = tmp_path_factory.mktemp("corpus") / "shards", time.perf_counter()
    shards(out)
    yield out, -(-ROWS // SHARD), time.perf_counter() - begin
    shutil.rmtree(out)


@pytest.mark.bench
@pytest.mark.timeout(6 * 3600)
def test_memory_of_a_streamed_epoch_is_flat(corpus, tmp_path):
    directory, count, made = corpus
    argv = [str(directory), str(tmp_path / "run"), str(count), str(ROWS), WORKERS, KIND]
    log = tmp_path / "run" / "metrics.jsonl"
    samples, opened, seconds = watched(
        [sys.executable, "-c", TRAIN, *argv], tmp_path / "out", lambda: log.exists() and log.stat().st_size > 0
    )
    lines = [json.loads(line) for line in log.read_text().split("\n") if line]
    parts = tenths(samples)
    line = {
        "bench": "streamed epoch",
        "rows": ROWS,
        "shards": count,
        "made_s": round(made),
        "first_metrics_s": round(opened, 1),
    }
    line |= {"epoch_s": round(seconds), "rows_per_s": round(ROWS / seconds), "memory_mb": parts, "peak_mb": round(max(samples))}
    print(json.dumps({**line, "load": [round(x, 1) for x in os.getloadavg()], "last": lines[-1]}))
    assert max(parts[1:]) < 1.1 * parts[1] + 20, "memory grows over the epoch"


@pytest.mark.bench
@pytest.mark.timeout(6 * 3600)
def test_memory_of_a_streamed_evaluation(corpus, tmp_path):
    """All rows embedded while they are read, 2,000 queries of each direction ranked among all. Vectors past 256 MB and the table of rows are
    mapped from files, which do not count."""
    directory, count, _ = corpus
    out = tmp_path / "out"
    argv = [sys.executable, "-c", EVAL, str(directory), "", str(count)]
    samples, _, seconds = watched(argv, out, lambda: True)
    score = float(out.read_text().split()[-1])
    line = {
        "bench": "streamed evaluation",
        "rows": ROWS,
        "shards": count,
        "s": round(seconds),
    }
    line |= {"memory_mb": tenths(samples), "peak_mb": round(max(samples)), "map": score}
    print(json.dumps({**line, "load": [round(x, 1) for x in os.getloadavg()]}))
    assert 0 < score < 1
