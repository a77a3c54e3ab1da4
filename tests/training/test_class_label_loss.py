"""Class-proxy losses in real runs: counted, trained beside InfoNCE, resumed bit for bit, and absent from the artifact."""

import json

import pytest
import torch
from safetensors.torch import load_file

import mmtune
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import RecipeError
from mmtune.training.build_objective import build_objective
from mmtune.training.loop import Trainer
from tests.support import corpora

pytest.importorskip("pytorch_metric_learning", reason="the extra pml")
PAIRS = [["image", "text"], ["image", "image"]]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("class_labels")


def recipe(root, run, terms, **train):
    return {
        "model": "tiny:clip",
        "data": {
            "train": corpora.packed(root),
            "val": corpora.packed(root, 12, 1),
            "batches": {"groups": 4, "rows": 2},
        },
        "pairs": PAIRS,
        "objective": [{"loss": "info_nce", "pairs": [["image", "text"]]}, *terms],
        "train": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "precision": "fp32", **train},
        "run": {"dir": str(run)},
    }


PROXIES = {"loss": "pml:ProxyAnchorLoss", "pairs": [["image", "image"]], "label": "shade", "miner": "pml:MultiSimilarityMiner"}
SAMPLED = {"loss": "pml:TripletMarginLoss", "pairs": [["image", "image"]], "triplets_per_anchor": 2}


def state(run, name="last"):
    return torch.load(run / "checkpoints" / name / "state.pt", weights_only=True)


def test_stopped_and_resumed_is_bit_identical_proxies_included(root, tmp_path, monkeypatch, capfd):
    base = recipe(root, tmp_path / "whole", [PROXIES, SAMPLED], checkpoint_every=2, ema=0.9, l2_start=0.5)
    whole = mmtune.train(base)
    assert "objective[1]: 2 classes (column 'shade')" in capfd.readouterr().err
    base["run"] = {"dir": str(tmp_path / "parts")}
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 4:  # in the middle of the second epoch, and after a checkpoint
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(base, quiet=True)
    monkeypatch.undo()
    again = mmtune.train(base, resume=True, quiet=True)
    assert again["fingerprint"] == whole["fingerprint"]
    one, other = state(tmp_path / "whole"), state(tmp_path / "parts")
    assert one["objective"].keys() == other["objective"].keys() >= {"class_losses.1.loss.proxies"}
    assert all(torch.equal(v, other["objective"][k]) for k, v in one["objective"].items() if isinstance(v, torch.Tensor))
    proxies = one["objective"]["class_losses.1.loss.proxies"]
    assert proxies.shape == (2, 64)
    shapes = [m.shape for m in one["steady"]["mean"]]
    assert proxies.shape not in shapes  # no EMA of proxies
    lines = [json.loads(x) for x in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert {"pml:ProxyAnchorLoss", "pml:TripletMarginLoss", "info_nce"} <= lines[0].keys() | lines[0].get("terms", {}).keys()
    assert any("image->image map" in json.dumps(x) for x in lines)  # the direction that the proxies train is validated
    tensors = load_file(tmp_path / "whole" / "artifact" / "weights.safetensors")
    assert not any("class_losses" in k or "prox" in k for k in tensors)


def test_proxies_are_not_pulled_back_to_where_they_started(root, tmp_path):
    runs = {}
    for l2 in (0.0, 1000.0):
        mmtune.train(recipe(root, tmp_path / f"l2-{l2}", [{**PROXIES, "proxy_lr": 0.1}], l2_start=l2, epochs=1), quiet=True)
        runs[l2] = state(tmp_path / f"l2-{l2}")["objective"]["class_losses.1.loss.proxies"]
    # with L2-SP on proxies, every step would take them back to their start (lr x l2_start = 1): half of the movement and more
    moved = float((runs[0.0] - build_start(root)).abs().mean())
    assert moved > 0.1 and float((runs[0.0] - runs[1000.0]).abs().mean()) < moved / 2


def build_start(root):
    """The proxies before the first step."""
    data = WeightedConcat([open_data(corpora.packed(root))], [1.0])
    terms = [{"loss": "info_nce", "pairs": [["image", "text"]]}, PROXIES]
    objective = build_objective(terms, [tuple(p) for p in PAIRS], dim=64, data=data, seed=0)
    return objective.class_losses["1"].loss.proxies.detach()


def test_what_cannot_be_learnt_is_refused_before_the_first_step(root, tmp_path):
    for term, message in (
        ({**PROXIES, "label": "shad"}, r"objective\[1\].label: .*no row has a column 'shad'; did you mean 'shade'"),
        ({**PROXIES, "label": "id"}, None),
        ({**SAMPLED, "label": "id"}, r"objective\[1\]: pml:TripletMarginLoss compares items of the same class, but no batch"),
        ({**PROXIES, "pairs": [["text", "text"]]}, "is not among the recipe's pairs"),
    ):
        document = recipe(root, tmp_path / f"run{len(list(tmp_path.iterdir()))}", [term], epochs=1)
        if message is None:
            mmtune.train(document, quiet=True)  # a class for each row: instance discrimination by proxies
            continue
        with pytest.raises((RecipeError, mmtune.errors.DataError), match=message):
            mmtune.train(document, quiet=True)
