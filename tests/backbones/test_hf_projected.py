"""A tower saved alone keeps its projection: its vectors are those of upstream's class, and of the dual encoder that it is from."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

import mmtune
from mmtune.backbones.hf_projected_tower import PROJECTED_TOWERS
from mmtune.errors import ModelError
from mmtune.modalities.sound import Sound
from tests.support import checkpoints

NOISE = np.random.default_rng(0)
VALUES = {
    "image": [PIL.Image.fromarray(NOISE.integers(0, 256, s, dtype=np.uint8)) for s in ((40, 60, 3), (33, 32, 3))],
    "audio": [Sound(NOISE.standard_normal(n).astype(np.float32), 48000) for n in (4000, 9000)],
    "text": ["a red bag", "blue"],
}


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    root = tmp_path_factory.mktemp("dual")
    makers = {"CLIP": checkpoints.clip, "Clap": checkpoints.clap, "Siglip": checkpoints.siglip}
    return {name: make(root / name) for name, make in makers.items()}


def saved_alone(dual, name, out):
    """Save one tower of a dual encoder with upstream's class `name`, and return that model."""
    source = next(d for prefix, d in dual.items() if name.startswith(prefix))
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    cls = getattr(transformers, name)
    config = cls.config_class.from_pretrained(source)
    dim = json.loads((source / "config.json").read_text()).get("projection_dim")
    if dim:  # CLIP's own configuration of a tower does not repeat it
        config.projection_dim = dim
    model = cls.from_pretrained(source, config=config).eval()
    model.save_pretrained(out)
    return model, source


@pytest.mark.parametrize("name", PROJECTED_TOWERS)
def test_vectors_are_those_of_upstream_and_of_the_dual_encoder(dual, name, tmp_path):
    model, source = saved_alone(dual, name, tmp_path / "alone")
    known = PROJECTED_TOWERS[name]
    values = VALUES[known.modality]
    ours = mmtune.load(f"hf:{tmp_path / 'alone'}")
    assert list(ours.towers) == [known.modality]
    vectors = ours.encode(**{known.modality: values})
    np.testing.assert_allclose(vectors, mmtune.load(f"hf:{source}").encode(**{known.modality: values}), atol=1e-5)
    tower = ours.towers[known.modality]
    with torch.no_grad():
        upstream = getattr(model(**tower.preprocess.collate([tower.preprocess(v) for v in values])), known.output)
    np.testing.assert_allclose(vectors, torch.nn.functional.normalize(upstream, dim=-1).numpy(), atol=1e-5)
    ours.save(tmp_path / "artifact")
    again = mmtune.load(tmp_path / "artifact")
    np.testing.assert_allclose(again.encode(**{known.modality: values}), vectors, atol=1e-6)
    assert again.fingerprint == ours.fingerprint


def test_another_pooling_is_refused(dual, tmp_path):
    saved_alone(dual, "CLIPVisionModelWithProjection", tmp_path / "alone")
    with pytest.raises(ModelError, match=r"CLIPVisionModelWithProjection has a pooling and a projection of its own"):
        mmtune.load(f"hf:{tmp_path / 'alone'}?pooling=mean")


def test_another_class_with_a_projection_is_refused_by_name(dual, tmp_path):
    saved_alone(dual, "CLIPVisionModelWithProjection", tmp_path / "alone")
    config = json.loads((tmp_path / "alone" / "config.json").read_text())
    (tmp_path / "alone" / "config.json").write_text(json.dumps(config | {"architectures": ["XModelWithProjection"]}))
    with pytest.raises(ModelError, match=r"XModelWithProjection .*is not supported"):
        mmtune.load(f"hf:{tmp_path / 'alone'}")
