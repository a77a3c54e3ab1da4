"""Checkpoints of earlier versions are still read."""

import json

import torch

from mmtune.training.checkpoint import Checkpoints, TrainerState


def test_a_checkpoint_with_the_old_file_and_field_names_is_read(tmp_path):
    folder = tmp_path / "last"
    folder.mkdir()
    torch.save({"model": {"w": torch.ones(2)}}, folder / "state.pt")
    old = {"step": 7, "epoch": 1, "batch": 2, "pairs": 56, "seconds": 4.0, "waited": 1.0, "best": [[0.5, "step-0000003"]]}
    (folder / "place.json").write_text(json.dumps(old | {"stale": 3, "finished": False}))
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.exists("last") and not checkpoints.exists("other")
    tensors, state = checkpoints.load("last")
    assert torch.equal(tensors["model"]["w"], torch.ones(2)) and state.wait_share == 0.25
    assert state == TrainerState(
        7, 1, 2, 56, 4.0, 1.0, [(0.5, "step-0000003")], validations_without_improvement=3, finished=False
    )
    checkpoints.save("last", tensors, state)
    assert checkpoints.load("last")[1] == state and not (folder / "place.json").exists()
