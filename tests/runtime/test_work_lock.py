"""Jobs shared through a directory: every job once, also when a worker is killed in the middle of one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mmtune.runtime import work_lock
from mmtune.runtime.work_lock import Timeout, file_lock, lock_in_turn, run_jobs_once

WORKER = """
import os, sys, time
from pathlib import Path
from mmtune.runtime.work_lock import run_jobs_once
from mmtune.runtime.files import append_jsonl, write_text
out, slow = Path(sys.argv[1]), float(sys.argv[2])
def make(path):
    append_jsonl(out / "begun.jsonl", [path.name, os.getpid()])
    time.sleep(slow)
    write_text(path, path.name)
run_jobs_once([out / f"{i:02d}" for i in range(20)], lambda p: p, Path.exists, make)
"""


def worker(out: Path, slow: float) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WORKER, str(out), str(slow)], cwd=Path(__file__).parents[2])


STOPPING = """
import contextlib, os, signal, sys
from mmtune.runtime import work_lock
from mmtune.index import shared_embedding
shared_embedding.ROWS = 2
lock_beside, held = work_lock._lock_beside, 0
@contextlib.contextmanager
def stopping(path, wait):
    global held
    with lock_beside(path, wait) as acquired:
        held += acquired and path.suffix == sys.argv[1]
        if held == 2: os.kill(os.getpid(), signal.SIGSTOP)
        yield acquired
if sys.argv[1]: work_lock._lock_beside = stopping
from mmtune import cli
sys.exit(cli.main(sys.argv[2:]))
"""


def command(verb: list[str], stop_at: str = "") -> subprocess.Popen:
    """An mmtune command as a process; stop_at: it stops, as SIGSTOP does, when it holds its second job on a file of that suffix."""
    argv = [sys.executable, "-c", STOPPING, stop_at, *verb]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(argv, cwd=Path(__file__).parents[2], env=environment, stdout=subprocess.PIPE, text=True)
    if stop_at:
        assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT).si_code == os.CLD_STOPPED
    return process


def kill_once_the_others_work(stopped: subprocess.Popen, folder: Path, pattern: str) -> None:
    """SIGKILL a process that holds a job, when others have made four more."""
    end, before = time.time() + 120, len(list(folder.glob(pattern)))
    while len(list(folder.glob(pattern))) < before + 4 and time.time() < end:
        time.sleep(0.01)
    stopped.kill()
    assert stopped.wait(timeout=60) == -signal.SIGKILL


def begun(out: Path) -> list[list]:
    path = out / "begun.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_three_workers_make_every_job_once(tmp_path):
    workers = [worker(tmp_path, 0.05) for _ in range(3)]
    assert [w.wait(timeout=60) for w in workers] == [0, 0, 0]
    names = [name for name, _ in begun(tmp_path)]
    assert sorted(names) == [f"{i:02d}" for i in range(20)]
    assert len({pid for _, pid in begun(tmp_path)}) > 1
    assert {p.name for p in tmp_path.iterdir()} == {*names, "begun.jsonl"}  # no lock file is left


def test_the_job_of_a_killed_worker_goes_to_another(tmp_path):
    stuck = worker(tmp_path, 600)
    end = time.time() + 60
    while not begun(tmp_path) and time.time() < end:
        time.sleep(0.01)
    other = worker(tmp_path, 0.0)
    while len(list(tmp_path.glob("[0-9][0-9]"))) < 19 and time.time() < end:
        time.sleep(0.01)
    time.sleep(0.2)
    assert other.poll() is None and len(list(tmp_path.glob("[0-9][0-9]"))) == 19  # it waits for what the first one holds
    stuck.send_signal(signal.SIGKILL)
    assert other.wait(timeout=60) == 0 and stuck.wait(timeout=60) == -signal.SIGKILL
    assert [n for n, pid in begun(tmp_path)].count("00") == 2 and (tmp_path / "00").read_text() == "00"


def test_without_locks_every_job_is_done(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    made = []
    run_jobs_once([1, 2], lambda j: tmp_path / str(j), lambda j: j in made, made.append)
    assert made == [1, 2]


@pytest.mark.dist
def test_embedding_shared_and_killed_is_that_of_one_process(tmp_path):
    """Two workers under torchrun, then two of which one is killed: the vectors of one process, part by part."""
    import pyarrow.parquet as pq

    import mmtune
    from mmtune.data.pack.pack import pack
    from tests.support import corpora

    pack(corpora.source(tmp_path / "source", 36), tmp_path / "data", shard_size="50KB")
    want = mmtune.embed("tiny:all", str(tmp_path / "data"), tmp_path / "one", quiet=True)
    base, root = [sys.executable, "-m"], Path(__file__).parents[2]
    verb = ["mmtune", "embed", "tiny:all", str(tmp_path / "data"), "--quiet", "--json", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [*base, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run([*torchrun, *verb, str(tmp_path / "two")], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0 and json.loads(done.stdout)["counts"] == want.to_dict()["counts"], done.stderr
    stopped = command([*verb[1:], str(tmp_path / "killed")], stop_at=".parquet")
    other = command([*verb[1:], str(tmp_path / "killed")])
    kill_once_the_others_work(stopped, tmp_path / "killed", "**/part-*.parquet")
    assert other.wait(timeout=120) == 0
    parts = [p.relative_to(tmp_path / "one") for p in sorted((tmp_path / "one").rglob("*.parquet"))]
    assert len(parts) >= 3 * 6
    for run in ("two", "killed"):
        assert len(list((tmp_path / run).rglob("*.parquet"))) == len(parts)
        assert json.loads((tmp_path / run / "meta.json").read_text()) == json.loads(
            (tmp_path / "one" / "meta.json").read_text()
        )
        for part in parts:
            a, b = pq.read_table(tmp_path / "one" / part), pq.read_table(tmp_path / run / part)
            assert a["id"] == b["id"] and a.schema.metadata == b.schema.metadata
            x, y = (t["vector"].combine_chunks().flatten().to_numpy() for t in (a, b))
            assert abs(x - y).max() < 1e-6


@pytest.mark.dist
def test_a_build_finds_what_workers_embedded_and_one_of_them_was_killed(tmp_path, monkeypatch):
    """`index embed` by three processes, one killed: every content once or more, the same answers, nothing left to embed."""
    from mmtune.data.pack.pack import pack
    from mmtune.index import shared_embedding
    from mmtune.index.collection import Collection
    from tests.support import corpora

    pack(corpora.source(tmp_path / "source", 36, columns=("image", "text")), tmp_path / "data", shard_size="25KB")
    data = str(tmp_path / "data")
    with Collection(tmp_path / "alone", create=True) as alone:
        assert alone.build("tiny:clip", data, quiet=True)["embedded"] == 36
        want = alone.search(text="a red square", k=36, version="v1")
    verb = ["index", "embed", str(tmp_path / "shop"), "--model", "tiny:clip", "--data", data, "--quiet", "--json"]
    stopped = command(verb, stop_at=".safetensors")
    others = [command(verb) for _ in range(2)]
    kill_once_the_others_work(stopped, tmp_path / "shop", "vectors/*/image/*.safetensors")
    said = [json.loads(w.communicate(timeout=240)[0])["counts"]["image"] for w in others]
    assert [(s["rows"], s["missing"], s["contents"]) for s in said] == [(36, 0, 36)] * 2
    assert sum(s["embedded"] for s in said) <= 36
    monkeypatch.setattr(shared_embedding, "ROWS", 2)
    with Collection(tmp_path / "shop") as shop:
        assert (
            shared_embedding.embed_into_collection(shop.path, "tiny:clip", data, quiet=True)["counts"]["image"]["embedded"] == 0
        )
        done = shop.build("tiny:clip", data, quiet=True)
        assert (done["embedded"], done["reused"], done["vectors"]) == (0, 36, {"image": 36})
        found = shop.search(text="a red square", k=36, version="v1")
    assert found.ids == want.ids
    assert max(abs(a["score"] - b["score"]) for a, b in zip(found.results, want.results, strict=True)) < 1e-5


def test_threads_get_the_lock_in_the_order_in_which_they_ask(tmp_path):
    """With polling alone one of 16 busy threads may wait for minutes; by chance this order would come once in 12! runs."""
    got, threads = [], []

    def work(number: int) -> None:
        with lock_in_turn(tmp_path / "lock", 60, 0.01):
            got.append(number)

    with lock_in_turn(tmp_path / "lock", 1, 0.01):
        for number in range(12):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(work_lock._waiting[str(tmp_path / "lock")]) < number + 2:
                time.sleep(0.001)
        with pytest.raises(Timeout), lock_in_turn(tmp_path / "lock", 0.05, 0.01):
            pass
    for thread in threads:
        thread.join()
    assert got == list(range(12)) and not work_lock._waiting


def test_another_process_is_waited_for_and_a_forked_one_begins_anew(tmp_path):
    with file_lock(tmp_path / "lock"), pytest.raises(Timeout), lock_in_turn(tmp_path / "lock", 0.05, 0.01):
        pass
    with lock_in_turn(tmp_path / "other", 1, 0.01):
        pid = os.fork()
        if not pid:
            os._exit(0 if not work_lock._waiting else 1)
        assert os.waitpid(pid, 0)[1] == 0
