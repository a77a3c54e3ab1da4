"""open_clip checkpoints from the hub's cache, CoCa, and text towers of transformers: open_clip's own vectors, also from an artifact."""

import json
import shutil

import numpy as np
import pytest
import torch

import mmtune
from mmtune.errors import ModelError
from tests.backbones.test_backbones import TEXTS, pictures
from tests.support import checkpoints

COCA = {
    "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, "attn_pooler_heads": 2},
    "vision_cfg": checkpoints.OPEN_CLIP["vision_cfg"]
    | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": checkpoints.OPEN_CLIP["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "custom_text": True,
}


def check_vectors(model, directory):
    """The vectors are open_clip's own."""
    import open_clip

    name = f"local-dir:{directory}"
    theirs, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)
    with torch.no_grad():
        want = theirs.eval().encode_image(torch.stack([transform(p) for p in pictures()]), normalize=True)
        np.testing.assert_allclose(model.encode(image=pictures()), want.numpy(), atol=1e-5)
        want = theirs.encode_text(tokens(TEXTS), normalize=True)
        np.testing.assert_allclose(model.encode(text=TEXTS), want.numpy(), atol=1e-5)


def test_coca(tmp_path):
    directory = checkpoints.open_clip_dir(tmp_path / "coca", **COCA)
    model = mmtune.load(f"open_clip:{directory}")
    check_vectors(model, directory)
    fingerprint = model.save(tmp_path / "a")
    again = mmtune.load(tmp_path / "a")
    assert again.fingerprint == fingerprint
    np.testing.assert_array_equal(again.encode(text=TEXTS), model.encode(text=TEXTS))


def test_a_text_tower_of_transformers_is_inside_the_artifact(tmp_path):
    text = checkpoints.text_encoder(tmp_path / "text")
    config = {
        "hf_model_name": str(text),
        "hf_tokenizer_name": str(text),
        "hf_proj_type": "mlp",
        "hf_pooler_type": "mean_pooler",
    }
    out = tmp_path / "open_clip"
    out.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text / name, out / name)
    directory = checkpoints.open_clip_dir(out, text_cfg=config | {"context_length": 16}, custom_text=True)
    model = mmtune.load(f"open_clip:{directory}")
    check_vectors(model, directory)
    vectors = model.encode(text=TEXTS)
    fingerprint = model.save(tmp_path / "a")
    assert str(tmp_path) not in (tmp_path / "a" / "parts" / "0" / "open_clip_config.json").read_text()
    shutil.rmtree(text), shutil.rmtree(directory)
    again = mmtune.load(tmp_path / "a")
    assert again.fingerprint == fingerprint
    np.testing.assert_array_equal(again.encode(text=TEXTS), vectors)


def test_a_checkpoint_of_the_hub_is_read_from_its_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    directory = checkpoints.open_clip_dir(tmp_path / "own")
    repository = tmp_path / "cache" / "models--org--name"
    shutil.copytree(directory, repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    model = mmtune.load("open_clip:hf-hub:org/name")
    assert model.fingerprint == mmtune.load(f"open_clip:{directory}").fingerprint
    check_vectors(model, directory)
    with pytest.raises(ModelError, match="open_clip:org/other: no such directory, and the checkpoint could not be"):
        mmtune.load("open_clip:hf-hub:org/other")


def test_a_checkpoint_of_the_hub_without_tokenizer_files(tmp_path, monkeypatch):
    """The tokenizer is the one that `hf_tokenizer_name` names, as in open_clip."""
    from huggingface_hub import constants

    def repository(source, name):
        folder = tmp_path / "cache" / f"models--org--{name}"
        shutil.copytree(source, folder / "snapshots" / "0123")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0123")

    words = checkpoints.text_encoder(tmp_path / "text")
    size = len(json.loads((words / "tokenizer.json").read_text())["model"]["vocab"])
    text = checkpoints.OPEN_CLIP["text_cfg"] | {
        "hf_tokenizer_name": "org/words",
        "vocab_size": max(size, 400),
        "context_length": 16,
    }
    bare = checkpoints.open_clip_dir(tmp_path / "bare", text_cfg=text)
    repository(bare, "name")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match="open_clip:org/words: no such directory, and the checkpoint could not be") as e:
        mmtune.load("open_clip:hf-hub:org/name")
    assert "\n" not in str(e.value)
    repository(words, "words")
    model = mmtune.load("open_clip:hf-hub:org/name")
    with pytest.raises(ModelError, match="the tokenizer is missing"):
        mmtune.load(f"open_clip:{bare}")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(words / name, bare)
    check_vectors(model, bare)
    assert model.fingerprint == mmtune.load(f"open_clip:{bare}").fingerprint
    config = tmp_path / "configs" / "mmtune-words.json"
    config.parent.mkdir()
    named = json.loads((bare / "open_clip_config.json").read_text())["model_cfg"]
    named["text_cfg"]["hf_tokenizer_name"] = str(words)
    config.write_text(json.dumps(named))
    import open_clip

    open_clip.add_model_config(config)
    tagged = mmtune.load(f"open_clip:mmtune-words/{bare / 'open_clip_model.safetensors'}")
    stored = tagged.files()
    assert stored["0/tokenizer.json"] == (words / "tokenizer.json").read_bytes(), "as it is, not as this version would save it"
    np.testing.assert_allclose(tagged.encode(text=TEXTS), model.encode(text=TEXTS), atol=1e-6)


@pytest.mark.parametrize("tag", ["ViT-B-32/openai", "RN50/openai", "ViT-B-16/dfn2b", "ViT-B-32/metaclip_400m"])
def test_tags_trained_with_quickgelu_have_it_in_open_clips_table(tag):
    import open_clip

    assert open_clip.get_pretrained_cfg(*tag.split("/")).get("quick_gelu") is True
    assert json.dumps(open_clip.get_model_config(tag.split("/")[0])).count("quick_gelu") == 0
