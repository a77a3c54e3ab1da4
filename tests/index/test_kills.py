"""SIGKILLs at random moments, and clients that search while the pointer moves: real processes, real kills."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def drive(tmp_path: Path, *argv: object, timeout: int) -> dict:
    """The driver's document; what it complains about is the failure."""
    command = [sys.executable, "-m", "tests.support.index_driver", str(argv[0]), str(tmp_path), *map(str, argv[1:])]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MMTUNE_USER": "driver"}
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=timeout, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(900)
def test_a_handful_of_kills(tmp_path):
    told = drive(tmp_path, "kills", 5, 1, timeout=880)
    assert told["kills"] + told["finished first"] == 5 and told["kills"] >= 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_clients_while_the_pointer_moves(tmp_path):
    told = drive(tmp_path, "clients", 2, 300, 2, timeout=880)
    assert told["errors"] == [] and told["searches"] >= 300 and told["generation"] == 1 + 2 * 2
    assert min(told["by_version"].values()) > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_200_kills(tmp_path):
    """In build, upsert, delete, promote and rollback: never a broken live version, nothing lost, nothing doubled."""
    told = drive(tmp_path, "kills", 200, 7, timeout=3500)
    assert told["kills"] + told["finished first"] == 200 and told["kills"] >= 120
    assert all(told[op] >= 10 for op in ("build", "upsert", "delete", "promote", "rollback")), told


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100_000_searches_of_8_clients_during_100_promotions_and_rollbacks(tmp_path):
    told = drive(tmp_path, "clients", 8, 100_000, 100, timeout=3500)
    assert told["errors"] == [] and told["searches"] >= 100_000 and told["generation"] == 1 + 2 * 100
    assert min(told["by_version"].values()) > 1000, told
