"""SIGKILLs at random moments, and clients that search while the pointer moves: real processes, real kills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def drive(tmp_path: Path, *argv: object, timeout: int) -> dict:
    """The JSON document that the driver prints; its standard error is the failure's message."""
    command = [sys.executable, "-m", "tests.support.index_driver", str(argv[0]), str(tmp_path), *map(str, argv[1:])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MMTUNE_USER": "driver"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(900)
def test_a_handful_of_kills(tmp_path):
    counts = drive(tmp_path, "kills", 5, 1, timeout=880)
    assert counts["kills"] + counts["finished first"] == 5 and counts["kills"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_clients_while_the_pointer_moves(tmp_path):
    counts = drive(tmp_path, "clients", 2, 300, 2, timeout=880)
    assert counts["errors"] == [] and counts["searches"] >= 300 and counts["generation"] == 1 + 2 * 2
    assert min(counts["by_version"].values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_kills(tmp_path):
    """In build, upsert, delete, promote and rollback: never a broken live version, nothing lost, nothing doubled."""
    counts = drive(tmp_path, "kills", 200, 7, timeout=3500)
    assert counts["kills"] + counts["finished first"] == 200 and counts["kills"] >= 120
    assert all(counts[op] >= 10 for op in ("build", "upsert", "delete", "promote", "rollback")), counts


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_000_searches_of_8_clients_during_100_promotions_and_rollbacks(tmp_path):
    counts = drive(tmp_path, "clients", 8, 100_000, 100, timeout=3500)
    assert counts["errors"] == [] and counts["searches"] >= 100_000 and counts["generation"] == 1 + 2 * 100
    assert min(counts["by_version"].values()) > 1000, counts
