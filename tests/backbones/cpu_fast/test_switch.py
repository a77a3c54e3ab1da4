"""`cpu_kernels: off` leaves upstream's modules as they are; both ways give equal vectors and the same fingerprint."""

import numpy as np
import pytest
import torch

import mmtune
from tests.support import checkpoints, corpora

TEXTS = ["a red bag", "a photo of a dog", "boots"]


@pytest.fixture(scope="module")
def specs(tmp_path_factory):
    root = tmp_path_factory.mktemp("switch")
    return {
        "clip": f"hf:{checkpoints.clip(root / 'clip')}",
        "siglip": f"hf:{checkpoints.siglip(root / 'siglip')}",
        "clap": f"hf:{checkpoints.clap(root / 'clap')}",
        "text": f"hf:{checkpoints.text_encoder(root / 'text', 'mean')}",
        "open_clip": f"open_clip:{checkpoints.open_clip_dir(root / 'open_clip')}",
    }


def altered(model):
    """Names of the modules that are not of upstream's classes, or whose methods were replaced."""
    own = {n for n, m in model.named_modules() if type(m).__module__.startswith("mmtune.backbones.cpu_fast")}
    methods = {"forward", "reshape_mel2img"}
    return own | {n for n, m in model.named_modules() if methods & vars(m).keys()}


def values(model):
    generator = np.random.default_rng(0)
    made = {
        "image": [generator.integers(0, 256, (40, 50, 3), dtype=np.uint8) for _ in range(3)],
        "audio": [(generator.normal(size=60000).astype(np.float32) / 4, 48000)],
        "text": TEXTS,
    }
    return {m: made[m] for m in model.towers}


@pytest.mark.parametrize("name", ["clip", "siglip", "clap", "text", "open_clip"])
def test_off_alters_no_module_and_both_give_the_same_vectors(specs, name, tmp_path):
    auto, off = mmtune.load(specs[name]), mmtune.load(specs[name], cpu_kernels="off")
    assert altered(auto) and not altered(off)
    assert auto.fingerprint == off.fingerprint
    for modality, some in values(auto).items():
        np.testing.assert_allclose(auto.encode(**{modality: some}), off.encode(**{modality: some}), atol=1e-5)
    auto.save(tmp_path / "a")
    assert altered(mmtune.load(tmp_path / "a")) == altered(auto)
    assert not altered(mmtune.load(tmp_path / "a", cpu_kernels="off"))


@pytest.mark.parametrize("kernels", ["auto", "off"])
def test_the_recipes_key_reaches_the_towers_that_train(specs, kernels, tmp_path, monkeypatch):
    from mmtune.training.loop import Trainer

    trained = []
    usual = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", lambda self, model, *a, **k: trained.append(model) or usual(self, model, *a, **k))
    recipe = {
        "model": specs["clip"],
        "data": {"train": corpora.packed(tmp_path, 8, 0, ("image", "text"))},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "cpu_kernels": kernels},
        "run": {"dir": str(tmp_path / "run")},
    }
    mmtune.train(recipe, quiet=True)
    assert len(trained) == 1 and bool(altered(trained[0])) is (kernels == "auto")
    assert all(torch.isfinite(p).all() for p in trained[0].parameters())
