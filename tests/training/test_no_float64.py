"""No float64 tensor is made where training and encoding compute on the device: Apple's GPU (MPS) has none.

The CPU stands in for a device without float64: every result of an operation of torch is looked at.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmtune
from mmtune.losses import tiled
from mmtune.runtime import devices
from mmtune.training.loop import Trainer
from tests.support import corpora


class NoFloat64(TorchDispatchMode):
    """Raises where an operation makes a float64 tensor on the device, which is the CPU here."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in tree_leaves(made):
            if isinstance(x, torch.Tensor) and x.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{func} makes {x.dtype}, which MPS does not have")
        return made


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("no-float64")


@pytest.fixture
def without_float64(monkeypatch):
    """The steps of training, and the towers in encoding, run under the mode; sums are accumulated as on MPS."""
    monkeypatch.setattr(tiled, "accumulation_dtype", lambda _: devices.accumulation_dtype(torch.device("mps")))
    step, encode = Trainer.step, mmtune.Model.encode_inputs
    taken = []

    def stepped(self, batch):
        with NoFloat64():
            batch = batch.map_tensors(torch.clone)  # as the copy to the device
            taken.append(1)
            return step(self, batch)

    def encoded(self, *args):
        with NoFloat64():
            return encode(self, *args)

    monkeypatch.setattr(Trainer, "step", stepped)
    monkeypatch.setattr(mmtune.Model, "encode_inputs", encoded)
    return taken


OBJECTIVES = {
    "contrastive": {"objective": ["info_nce", {"loss": "sigmoid"}, {"loss": "triplet"}], "matryoshka": {"dims": [16]}},
    "tiles": {"objective": [{"loss": "info_nce", "tile": "always", "smoothing": 0.1}], "memory": {"size": 16}},
    "teacher": {
        "objective": [{"loss": x, "teacher": "big"} for x in ("kl", "score_mse", "margin_mse", "feature")],
        "teachers": {"big": {"model": "tiny:clip@3"}},
        "train": {"ema": 0.9, "l2_start": 0.1, "micro_batch_size": 3},
    },
    "labels": {
        "pairs": [["image", "text"], ["image", "image"]],
        "objective": ["info_nce", {"loss": "pml:ProxyAnchorLoss", "pairs": [["image", "image"]]}],
    },
    "mixup": {"augment": {"image": {"mixup": 0.3, "crop": 0.7}}, "mining": {"rounds": 1, "negatives": 2}},
    "cross-encoder": {
        "pairs": [["image", "text"]],
        "cross_encoder": {"layers": 1, "width": 32, "attention_heads": 2, "max_tokens": 16, "depth": 4},
    },
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_training_step_and_encoding_make_no_float64(name, root, tmp_path, without_float64):
    if name == "labels":
        pytest.importorskip("pytorch_metric_learning", reason="the extra pml")
    pictures = ("image", "text")
    changes = OBJECTIVES[name]
    recipe = {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(root, 24, 0, pictures), "val": corpora.packed(root, 12, 1, pictures)},
        "run": {"dir": str(tmp_path / "run"), "trackers": []},
        **changes,
        "train": {"epochs": 1, "batch_size": 12, "precision": "fp32", "warmup": 0, **changes.get("train", {})},
    }
    if name == "teacher":
        recipe["teachers"]["big"]["out"] = str(tmp_path / "teacher")
    mmtune.train(recipe, quiet=True)
    assert len(without_float64) == 2


def test_the_mode_finds_float64():
    with pytest.raises(TypeError, match="float64"), NoFloat64():
        torch.zeros(2).double()
