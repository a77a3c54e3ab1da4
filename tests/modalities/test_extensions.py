"""A modality, a tower family and an augmentation from outside: each one file of under 40 lines in the working directory."""

import importlib
import sys

import numpy as np
import pytest

import mmtune
from mmtune import backbones, modalities
from mmtune.errors import ModelError, RecipeError
from tests.support import corpora

MODALITY = '''
import numpy as np
from mmtune.modalities import Modality, Rejected

class Readings(Modality):
    """Readings of three axes, as raw little-endian float32."""
    name = "readings"
    extensions = ("f32",)
    columns = ("readings",)

    def decode(self, data):
        if not data or len(data) % 12:
            raise Rejected("not readings of three axes")
        return np.frombuffer(data, "<f4").reshape(-1, 3)

    def coerce(self, value):
        return np.asarray(value, np.float32)

    def accepts(self, value):
        return isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 3
'''

FAMILY = '''
import torch
from mmtune.backbones import Backbone, Tower

class Preprocess:
    def __call__(self, signal, rng=None):
        return {"x": torch.tensor([float(len(signal)), float(signal.count("a"))])}

    def collate(self, items):
        return {"x": torch.stack([i["x"] for i in items])}

class Lengths:
    """`lengths_family:Lengths:DIM`: a linear layer over two counts of a text."""
    def load(self, place):
        torch.manual_seed(0)
        module = torch.nn.Linear(2, int(place))
        tower = Tower("text", int(place), Preprocess(), lambda inputs: module(inputs["x"]), [module])
        return Backbone("lengths_family:Lengths", module, {"text": tower}, [], {"dim": place.encode()})

    def rebuild(self, directory):
        return self.load((directory / "dim").read_text())
'''

AUGMENTATION = '''
from PIL import ImageOps

class Invert:
    """Inverts the colours of a share of the images."""
    def __init__(self, share: float):
        self.share = share

    def __call__(self, image, rng):
        return ImageOps.invert(image) if rng.random() < self.share else image
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with the three files; tables and imports are as before afterwards."""
    for name, code in {"own_modality": MODALITY, "lengths_family": FAMILY, "own_augmentation": AUGMENTATION}.items():
        assert len(code.strip().splitlines()) < 40
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    for module, table in ((modalities, "TABLE"), (modalities, "AUGMENTATIONS"), (backbones, "TABLE")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("own_modality", "lengths_family", "own_augmentation"):
        sys.modules.pop(name, None)
    modalities._load.cache_clear()
    importlib.invalidate_caches()


def test_a_modality_from_the_working_directory(here):
    modalities.register("readings", "own_modality:Readings")
    assert modalities.names() == ["image", "audio", "text", "readings"]
    kind = modalities.get("readings")
    assert kind.decode(np.ones((2, 3), "<f4").tobytes()).shape == (2, 3) and modalities.by_extension()["f32"] == "readings"
    with pytest.raises(RecipeError, match="every dataset has a column of that name"):
        modalities.register("group", "own_modality:Readings")
    with pytest.raises(RecipeError, match="no modality called 'reading'; did you mean 'readings'"):
        modalities.get("reading")
    modalities.register("other", "not_there:Class")
    with pytest.raises(RecipeError) as e:
        modalities.get("other")
    assert f"no module 'not_there' among the installed packages nor in {here}" in str(e.value)


def test_a_tower_family_from_the_working_directory(here):
    model = mmtune.load("lengths_family:Lengths:8")
    vectors = model.encode(["a banana", "an apple"])
    assert vectors.shape == (2, 8)
    model.save(here / "saved")
    np.testing.assert_array_equal(mmtune.load(here / "saved").encode(["a banana", "an apple"]), vectors)
    del backbones.TABLE["lengths_family:Lengths"]  # as in another process
    with pytest.raises(ModelError, match="its model family 'lengths_family:Lengths' is not registered"):
        mmtune.load(here / "saved")
    backbones.register("lengths", "lengths_family:Lengths")
    np.testing.assert_array_equal(mmtune.load("lengths:8").encode(["a banana", "an apple"]), vectors)
    with pytest.raises(ModelError, match="no model family 'lengts'; did you mean 'lengths'"):
        mmtune.load("lengts:8")


@pytest.mark.parametrize("name", ["own_augmentation:Invert", "invert"])
def test_an_augmentation_from_the_working_directory(here, name):
    modalities.register_augmentation("invert", "own_augmentation:Invert")
    recipe = {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(here, 8, 0, ("image", "text"))},
        "augment": {"image": {"flip": True, "custom": {name: {"share": 1.0}}}},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": str(here / "run")},
    }
    assert mmtune.train(recipe, quiet=True).steps == 1
    assert sys.modules["own_augmentation"].Invert
    with pytest.raises(RecipeError, match=r"augment\.image\.custom\.invert: .*strength"):
        modalities.make_step("image", "invert", {"strength": 1}, "augment.image.custom")
    with pytest.raises(RecipeError, match=r"augment\.image\.custom: no augmentation 'invrt'; did you mean 'invert'"):
        modalities.make_step("image", "invrt", {}, "augment.image.custom")


def test_the_chain_applies_its_steps_in_order(here):
    import random

    import PIL.Image

    white = PIL.Image.new("RGB", (4, 4), "white")
    added = {"own_augmentation:Invert": {"share": 1.0}, "trivial_augment": {}}
    steps = [modalities.make_step("image", name, options, "augment.image.custom") for name, options in added.items()]
    chain = modalities.with_steps(lambda image, rng: image, steps)
    assert chain.steps[1](white, random.Random(0)).getpixel((0, 0)) == (0, 0, 0) and chain.zoom == float("inf")
    assert chain(white, random.Random(0)).size == (4, 4)
