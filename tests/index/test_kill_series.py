"""500 SIGKILLs at exact points of every verb, in four kinds of store. Run all: pytest -m slow tests/index/test_kill_series.py -s"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kill_series import VERBS
from tests.support.store_helpers import postgres

ROOT = Path(__file__).parents[2]
KILLS = {"faiss": 125, "pgvector": 125, "lancedb": 125, "qdrant-edge": 125}
NEEDS = {"faiss": ["faiss"], "pgvector": ["psycopg", "pgserver"], "lancedb": ["lancedb"], "qdrant-edge": ["qdrant_edge"]}
done: dict[str, int] = {}


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    """The library that kills, compiled."""
    compiler = shutil.which("cc") or pytest.skip("needs a C compiler (cc) for the library that kills at the n-th call")
    library = tmp_path_factory.mktemp("shim") / "kill_at_call.so"
    source = ROOT / "tests" / "support" / "kill_at_call.c"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def series(shim: Path, root: Path, kind: str, kills: int, seed: int) -> dict:
    """Run the series in a process of its own; its standard error is the failure's message."""
    command = [sys.executable, "-m", "tests.support.kill_series", str(root), kind, str(kills), str(seed)]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1", "MMTUNE_USER": "driver"}
    if kind == "pgvector":
        with postgres() as url:
            result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**environment, "KILLS_DB": url})
    else:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    print(result.stdout)
    counts: dict = json.loads(result.stdout.splitlines()[-1])
    return counts


def needed(kind: str) -> None:
    for module in NEEDS[kind]:
        pytest.importorskip(module)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KILLS)
def test_nothing_is_lost_doubled_or_half_erased(kind, shim, tmp_path):
    needed(kind)
    counts = series(shim, tmp_path, kind, KILLS[kind], 11)
    assert counts["kills"] == KILLS[kind] and min(counts["verbs"][v] for v in VERBS) >= KILLS[kind] // 25, counts
    done[kind] = counts["kills"]


@pytest.mark.slow
def test_500_kills():
    """After the others: how many kills there were."""
    if set(done) != set(KILLS):
        pytest.skip(f"only {sorted(done)} ran")
    print(f"{sum(done.values())} kills: {done}")
    assert sum(done.values()) == 500
