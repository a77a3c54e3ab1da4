"""--resume with a changed recipe: accepted where the run ends as if it had had these keys from the start, else refused."""

import json
import shutil

import pytest

import mmtune
from mmtune.errors import TrainingError
from mmtune.training.loop import Trainer
from tests.support import corpora


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


def recipe(root, run, train=None, data=None, **blocks):
    return {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(root), "val": corpora.packed(root, 12, 1), **(data or {})},
        "train": {"epochs": 4, "batch_size": 8, "precision": "fp32", "checkpoint_every": 1, **(train or {})},
        "run": {"dir": str(run)},
        **blocks,
    }


@pytest.fixture(scope="module")
def stopped(root):
    """{step: a run that died after this many steps}; an epoch has 3 steps, so after 2 it has not validated yet."""
    runs = {}
    for steps in (2, 7):
        count = 0

        def dies(self, batch, *rest, step=Trainer.step, steps=steps, **more):
            nonlocal count
            count += 1
            if count > steps:
                raise RuntimeError("killed")
            return step(self, batch, *rest, **more)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            patch.setattr(Trainer, "step", dies)
            mmtune.train(recipe(root, root / f"stopped-{steps}"), quiet=True)
        runs[steps] = root / f"stopped-{steps}"
    return runs


FREE = [{"train": {"keep": 1}}, {"train": {"checkpoint_every": None}}, {"gate": {"metric": "map"}}]
BEFORE_VALIDATION = [{"train": {"metric": "hit@1"}}, {"train": {"patience": 1}}, {"data": {"val": "OTHER"}}]


def changed(root, run, change):
    own = {
        k: {key: corpora.packed(root, 12, 2) if v == "OTHER" else v for key, v in block.items()} for k, block in change.items()
    }
    return recipe(root, run, **own)


@pytest.mark.parametrize("steps,change", [*((7, c) for c in FREE), *((2, c) for c in BEFORE_VALIDATION)])
def test_a_key_that_the_run_has_not_used_yet_is_accepted(root, stopped, tmp_path, steps, change):
    shutil.copytree(stopped[steps], tmp_path / "resumed")
    resumed = mmtune.train(changed(root, tmp_path / "resumed", change), resume=True, quiet=True)
    whole = mmtune.train(changed(root, tmp_path / "whole", change), quiet=True)
    weights = [(tmp_path / run / "artifact" / "weights.safetensors").read_bytes() for run in ("resumed", "whole")]
    assert weights[0] == weights[1] and resumed["steps"] == whole["steps"]
    assert resumed["best"][0]["checkpoint"] == whole["best"][0]["checkpoint"]
    ignored = {"pairs_per_second", "wait"}
    logs = [[json.loads(x) for x in (tmp_path / r / "metrics.jsonl").read_text().splitlines()] for r in ("resumed", "whole")]
    assert [{k: v for k, v in x.items() if k not in ignored} for x in logs[0]] == [
        {k: v for k, v in x.items() if k not in ignored} for x in logs[1]
    ]


REFUSED = [
    ({"train": {"metric": "hit@1"}}, "train.metric"),
    ({"data": {"val": "OTHER"}}, "data.val"),
    ({"train": {"lr": 0.1}}, "train.lr"),
    ({"augment": {"image": {"flip": True}}}, "augment.image"),
]


@pytest.mark.parametrize("change,key", REFUSED)
def test_a_key_that_the_run_has_used_is_refused_by_name(root, stopped, change, key):
    with pytest.raises(TrainingError, match=rf"the run to resume has another value of {key}"):
        mmtune.train(changed(root, stopped[7], change), resume=True, quiet=True)


def test_a_shorter_patience_is_refused_and_a_longer_one_accepted():
    from mmtune.training.run_directory import _is_longer

    assert _is_longer(None, 3) and _is_longer(4, 3) and _is_longer(None, None)
    assert not _is_longer(2, 3) and not _is_longer(3, None)
