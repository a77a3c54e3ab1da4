"""Training in the workers of Ray Train: the run that torchrun makes, also when a worker is killed; and errors of users."""

import threading
import time
from pathlib import Path

import psutil
import pytest

import mmtune
from mmtune.errors import DataError
from tests.support.ray_nodes import one_node
from tests.training.test_dist_train import TORCHRUN, done, launch, lines, recipe, weights

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def cluster():
    with one_node() as ray:
        yield ray


def kill_a_worker(run: Path, killed: list) -> None:
    """Kill -9 the worker of rank 1 once the run has a checkpoint."""
    end = time.time() + 1200
    while time.time() < end and not (run / "checkpoints" / "last").exists():
        time.sleep(0.01)
    for p in psutil.Process().children(recursive=True):
        if "RayTrainWorker" in " ".join(p.cmdline()):
            p.kill()
            killed.append(p.pid)
            return


def test_the_run_of_torchrun_although_a_worker_is_killed(cluster, tmp_path, capsys):
    path = recipe(tmp_path, tmp_path / "r.yaml", train={"epochs": 12}, augment={"image": {"flip": True}})
    want = done(launch(TORCHRUN, path, tmp_path / "torchrun"))
    run, killed = tmp_path / "ray", []
    assassin = threading.Thread(target=kill_a_worker, args=(run, killed))
    assassin.start()
    result = mmtune.train(path, [f"run.dir={run}"], quiet=True, engine="ray", workers=2)
    assassin.join(10)
    assert killed and "workers continue from the last checkpoint" in capsys.readouterr().err
    assert weights(run) == weights(tmp_path / "torchrun")
    assert result.fingerprint == want["fingerprint"] and result.artifact == str(run / "artifact")
    assert result.result is not None and result.metrics == want["metrics"]
    a, b = lines(tmp_path / "torchrun"), lines(run)
    assert [(r["step"], r.get("loss")) for r in a] == [(r["step"], r.get("loss")) for r in b]
    assert {p.name for p in run.iterdir()} == {p.name for p in (tmp_path / "torchrun").iterdir()}


def test_an_error_of_the_user_is_raised_here_at_once(cluster, tmp_path):
    path = recipe(tmp_path, tmp_path / "r.yaml", data={"train": str(tmp_path / "nothing")})
    with pytest.raises(DataError, match="nothing"):
        mmtune.train(path, [f"run.dir={tmp_path / 'run'}"], quiet=True, engine="ray", workers=1)
