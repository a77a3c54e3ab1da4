"""IVF-PQ for more vectors than memory: parts and merge give the index that one process builds in memory, killed anywhere or
shared by two processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmtune.errors import DataError
from mmtune.index.stores import create_store, faiss_ivf, open_store
from mmtune.index.stores.faiss_index import make_index, plan_index
from mmtune.index.stores.faiss_store import FaissStore
from mmtune.index.stores.import_faiss import import_faiss
from tests.support.store_helpers import clustered, place

ROWS, DIM = 12_000, 16

BUILD = """
import os, signal, sys
from mmtune.index.stores import faiss_files, faiss_ivf, import_faiss, open_store
from mmtune.runtime.files import atomic_open
from tests.support.store_helpers import place
from pathlib import Path
import contextlib
faiss_ivf.PART = faiss_ivf.BLOCK = 2048
where, fatal = sys.argv[2], int(sys.argv[3])
class Watched:
    def __init__(self, file): self.file, self.writes = file, 0
    def __getattr__(self, name): return getattr(self.file, name)
    def write(self, data):
        self.writes += 1
        if self.writes == 100: os.kill(os.getpid(), signal.SIGKILL)
        return self.file.write(data)
count = 0
@contextlib.contextmanager
def fatal_open(path):
    global count
    count += 1
    with atomic_open(path) as f:
        yield Watched(f) if where == "faiss_ivf" else f
        if count == fatal: os.kill(os.getpid(), signal.SIGKILL)
if where in ("faiss_files", "faiss_ivf", "import_faiss"):
    setattr(sys.modules["mmtune.index.stores." + where], "atomic_open", fatal_open)
store = open_store(place("faiss", Path(sys.argv[1]), None))
print(store.build("ivfpq")["index"])
"""


def start(root: Path, where: str = "nowhere", fatal: int = 0) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", BUILD, str(root), where, str(fatal)]
    return subprocess.Popen(argv, cwd=Path(__file__).parents[3], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def vectors():
    return clustered(np.random.default_rng(0), ROWS, DIM)


@pytest.fixture(scope="module")
def whole(vectors, tmp_path_factory):
    """What faiss writes when it trains and adds in one go, in memory; and the settings."""
    settings = plan_index("ivfpq", ROWS, DIM)
    index = import_faiss().index_factory(
        DIM, f"IVF{settings['cells']},PQ{settings['codes']}np", import_faiss().METRIC_INNER_PRODUCT
    )
    index.train(vectors)
    index.add(vectors)
    path = tmp_path_factory.mktemp("whole") / "index"
    import_faiss().write_index(index, str(path))
    return path.read_bytes(), settings


def filled(root: Path, vectors: np.ndarray) -> FaissStore:
    """Ids descend in the order of the vectors, so that the base holds them in that order; the segments come in another."""
    store = create_store(place("faiss", root, None), DIM, "f")
    for at in (8000, 0, 4000):
        rows = range(at, at + 4000)
        store.upsert([f"i{ROWS - n:05d}" for n in rows], vectors[at : at + 4000], [{"n": n} for n in rows])
    return store


def index_of(store: FaissStore) -> bytes:
    base = json.loads((store.directory / "manifest.json").read_text())["base"]
    assert sorted(p.name.partition(".")[2] for p in store.directory.iterdir()) == [
        "index",
        "json",
        "rows.arrow",
        "vectors.safetensors",
    ]
    return (store.directory / f"{base}.index").read_bytes()


@pytest.mark.parametrize("part", [ROWS, 2048])
def test_parts_merged_are_the_index_made_in_memory(vectors, whole, part, tmp_path, monkeypatch):
    monkeypatch.setattr(faiss_ivf, "PART", part)
    monkeypatch.setattr(faiss_ivf, "BLOCK", 1024)
    make_index(vectors, whole[1], tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a.index"]
    assert (tmp_path / "a.index").read_bytes() == whole[0]


KILLS = [("faiss_files", 2), ("import_faiss", 1), ("import_faiss", 4), ("faiss_ivf", 0)]


@pytest.mark.parametrize(
    "where,fatal", [pytest.param(*k, marks=() if k[0] == "faiss_ivf" else pytest.mark.slow) for k in KILLS]
)
def test_killed_and_built_again_is_the_same_index(vectors, whole, where, fatal, tmp_path, monkeypatch):
    """Before the base, the training, the third part is published, and in the middle of the merge."""
    store = filled(tmp_path, vectors)
    assert start(tmp_path, where, fatal).wait(120) == -signal.SIGKILL
    assert json.loads((store.directory / "manifest.json").read_text())["base"] is None
    left = {p.name: p.stat().st_ino for p in store.directory.iterdir() if ".part-" in p.name and p.name[0] != "."}
    assert len(left) == {"faiss_ivf": 6, "import_faiss": max(0, fatal - 2), "faiss_files": 0}[where]
    monkeypatch.setattr(faiss_ivf, "PART", 2048)
    monkeypatch.setattr(faiss_ivf, "BLOCK", 2048)
    written, real = [], faiss_ivf.write_index
    monkeypatch.setattr(faiss_ivf, "write_index", lambda index, path: (written.append(path.name), real(index, path)))
    store.build("ivfpq")
    assert not set(written) & set(left) and len([n for n in written if ".part-" in n]) == 6 - len(left)
    assert index_of(store) == whole[0]
    assert len(store) == ROWS and np.array_equal(store.fetch(["i00001", f"i{ROWS}"]), vectors[[ROWS - 1, 0]])


@pytest.mark.dist
def test_two_processes_share_a_build(vectors, whole, tmp_path):
    store = filled(tmp_path, vectors)
    both = [start(tmp_path) for _ in range(2)]
    assert [(p.communicate(timeout=120)[0].strip(), p.returncode) for p in both] == [("ivfpq", 0)] * 2
    assert index_of(store) == whole[0]


def test_little_memory_means_fewer_cells():
    rich, poor = plan_index("ivfpq", 10**9, 512, 16_384), plan_index("ivfpq", 10**9, 512, 256)
    assert rich["cells"] == 65_536 and rich["sample"] == 64 * 65_536
    assert poor["sample"] * 512 * 4 <= 128 << 20 and poor["cells"] == poor["sample"] // 39
    with pytest.raises(DataError, match="64 MB or more"):
        plan_index("ivfpq", 10**9, 512, 8)


def test_an_empty_store_is_built(tmp_path):
    store = create_store(place("faiss", tmp_path, None), DIM, "f")
    assert store.build() == {"index": "flat"} and len(open_store(place("faiss", tmp_path, None))) == 0
    store.upsert(["a"], np.eye(DIM, dtype=np.float32)[:1], [{}])
    store.delete(["a"])
    assert store.build() == {"index": "flat"} and store.ids() == []
