"""Training in the workers of Ray Train on two nodes, one of which is killed. Apart from test_ray_train, which keeps a connection to one node."""

import pytest

import mmtune
from tests.support.ray_nodes import two_nodes
from tests.training.test_dist_train import lines, recipe

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1800)]


def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint(tmp_path, capsys):
    """Two nodes with a worker each; one is killed in the middle, and the other finishes the run: every step once, as in one process."""
    path = recipe(tmp_path, tmp_path / "r.yaml", train={"epochs": 12, "checkpoint_every": 2})
    mmtune.train(path, [f"run.dir={tmp_path / 'alone'}"], quiet=True)
    run = tmp_path / "ray"
    with two_nodes() as nodes:
        with nodes.one_dies(lambda: int((run / "checkpoints" / "last").exists())) as killed:
            result = mmtune.train(path, [f"run.dir={run}"], quiet=True, engine="ray", workers=2)
        assert killed == [1]
    assert "1 workers continue from the last checkpoint" in capsys.readouterr().err
    a, b = ([r for r in lines(d) if "loss" in r] for d in (tmp_path / "alone", run))
    assert [r["step"] for r in a] == [r["step"] for r in b]
    assert [r["loss"] for r in b] == pytest.approx([r["loss"] for r in a], abs=1e-3)
    assert result.artifact == str(run / "artifact") and (run / "artifact" / "mmtune.json").is_file()
