"""Every dual encoder of transformers is loaded with upstream's own vectors, or refused in one line."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

import mmtune
from mmtune.backbones.hf_dual_encoder_table import DUAL_ENCODERS
from mmtune.errors import ModelError
from tests.support.dual_checkpoints import MAKERS

TEXTS = ["a red bag with a stitch", "blue", "a photo of a green dog and a cat that sits on it " * 3]


def pictures() -> list[PIL.Image.Image]:
    noise = np.random.default_rng(0)
    shapes = ((40, 60, 3), (90, 33, 3), (32, 32, 3), (20, 25, 3))
    return [PIL.Image.fromarray(noise.integers(0, 256, s, dtype=np.uint8)) for s in shapes]


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x.float(), dim=-1).detach().numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("dual")
    return {kind: make(root / kind) for kind, make in MAKERS.items()}


def upstream(directory, kind):
    """Vectors of transformers' own model and processor: (of `pictures`, of TEXTS, the scale of its logits)."""
    import transformers

    model = getattr(transformers, DUAL_ENCODERS[kind].model).from_pretrained(directory).eval()
    processor = transformers.AutoProcessor.from_pretrained(directory)
    words = {"text": TEXTS, "return_tensors": "pt", "truncation": True}
    if kind not in ("siglip2", "align", "tipsv2", "owlvit", "owlv2"):  # whose processors have a padding of their own
        words["padding"] = True
    if kind in (
        "owlvit",
        "owlv2",
        "aimv2",
        "clipseg",
        "groupvit",
        "altclip",
        "metaclip_2",
        "flava",
        "chinese_clip",
        "blip",
        "align",
    ):
        words["max_length"] = 24
    with torch.no_grad():
        texts = processor(**words)
        images = [processor.image_processor(images=p, return_tensors="pt") for p in pictures()]
        texts.pop("token_type_ids", None)
        if kind == "blip":
            hidden = [model.vision_model(**i).last_hidden_state[:, 0] for i in images]
            image = torch.cat([model.vision_proj(h) for h in hidden])
            text = model.text_proj(model.text_encoder(**texts).last_hidden_state[:, 0])
        else:
            image = torch.cat([model.get_image_features(**i).pooler_output for i in images])
            text = model.get_text_features(**texts).pooler_output
        if kind == "flava":
            image, text = image[:, 0], text[:, 0]
    if hasattr(model, "temperature"):
        return unit(image), unit(text), 1 / float(model.temperature.detach())
    return unit(image), unit(text), float(model.logit_scale.detach().exp()) if kind != "blip" else None


@pytest.mark.parametrize("kind", MAKERS)
def test_vectors_equal_transformers(made, kind):
    image, text, scale = upstream(made[kind], kind)
    ours = mmtune.load(f"hf:{made[kind]}")
    np.testing.assert_allclose(ours.encode(image=pictures()), image, atol=1e-5)
    np.testing.assert_allclose(ours.encode(text=TEXTS), text, atol=1e-5)
    np.testing.assert_allclose([ours.encode(text=t) for t in TEXTS], text, atol=1e-5)  # whatever else is in the batch
    if scale is not None:
        assert float(ours.logit_scale("image", "text")[0].detach()) == pytest.approx(scale, rel=1e-5)


def test_every_loadable_dual_encoder_has_a_parity_test():
    assert set(MAKERS) | {"clip", "siglip", "clap"} == set(DUAL_ENCODERS)  # the three have tests in test_backbones


def refused_types():
    """Every `model_type` of the installed transformers with several inner models that is not in DUAL_ENCODERS."""
    import transformers

    for kind, config in transformers.CONFIG_MAPPING.items():
        parts = getattr(config, "sub_configs", None) or getattr(config, "sub_configs_defaults", {})
        if len(parts) > 1 and kind not in DUAL_ENCODERS:
            yield kind


def test_every_other_architecture_with_several_towers_is_refused_by_name(tmp_path):
    kinds = [*refused_types(), "an_architecture_of_next_year"]
    assert len(kinds) > 50 and {"blip-2", "xclip"} <= set(kinds)
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for kind in kinds:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(ModelError) as e:
            mmtune.load(f"hf:{tmp_path}")
        message = str(e.value)
        assert kind in message and "\n" not in message and ("is not supported" in message or "has no architecture" in message)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("blip", "BlipForConditionalGeneration"), ("clip", "CLIPForImageClassification"), ("xclip", "XCLIPModel")],
)
def test_another_head_is_refused_by_name_on_the_command_line(kind, architecture, tmp_path, capsys):
    from mmtune.cli import main

    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "architectures": [architecture]}))
    assert main(["embed", f"hf:{tmp_path}", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err.strip()
    assert f"{architecture} (model_type '{kind}') is not supported" in message and message.count("\n") == 0


def test_custom_code_of_jina_clip_is_refused_by_name(tmp_path):
    """Its config.json has a `model_type` that transformers does not know, and classes of its own in `auto_map`."""
    config = {
        "architectures": ["JinaCLIPModel"],
        "auto_map": {
            "AutoConfig": "jinaai/jina-clip-implementation--configuration_clip.JinaCLIPConfig",
            "AutoModel": "jinaai/jina-clip-implementation--modeling_clip.JinaCLIPModel",
        },
        "model_type": "jina_clip",
        "projection_dim": 768,
        "text_config": {"embed_dim": 768, "hf_model_name_or_path": "jinaai/jina-bert-flash-implementation"},
        "vision_config": {"embed_dim": 768, "image_size": 224},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"config.json refers to Python code of the checkpoint \(auto_map: JinaCLIPModel\)"):
        mmtune.load(f"hf:{tmp_path}")


@pytest.mark.parametrize("kind", MAKERS)
def test_artifact_and_layers(made, kind, tmp_path):
    """After a step of training: the same vectors from the artifact; every tower has blocks, layers and adapters that learn."""
    from mmtune.model.tower_blocks import blocks
    from mmtune.training.tuning.layers import layer_numbers
    from mmtune.training.tuning.lora_targets import find_targets

    model = mmtune.load(f"hf:{made[kind]}")
    model.ensure_logit_scales([("image", "text")])
    targets = {}
    for modality in model.towers:
        modules = model.modules_of(modality)
        layers, count = layer_numbers(modules)
        assert count == len(blocks(modules)) >= 2 and set(layers.values()) >= {0, *range(1, count + 1)}
        targets[modality] = [t.module.get_submodule(n) for t in find_targets(modules, None, "tune") for n in t.layers]
        assert len(targets[modality]) >= 2 * count
    values = {"image": pictures(), "text": TEXTS}
    batch = {m: t.preprocess.collate([t.preprocess(v) for v in values[m]]) for m, t in model.towers.items()}
    loss = sum(model.encode_inputs(m, x)[:, 0].sum() for m, x in batch.items())
    loss.backward()
    without = [m for m, layers in targets.items() for layer in layers if layer.weight.grad is None]
    assert not without
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p.sub_(0.01 * p.grad.sign())
    fingerprint = model.save(tmp_path / "a")
    again = mmtune.load(tmp_path / "a")
    assert again.fingerprint == fingerprint
    for m, v in values.items():
        np.testing.assert_array_equal(again.encode(**{m: v}), model.encode(**{m: v}))


def test_the_documentation_lists_them():
    import re
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "your_data.md").read_text()
    listed = re.search(r"Dual encoders that `hf:` loads, by `model_type`: (.*?) \(of", page, re.DOTALL)
    assert listed and re.findall(r"`([^`]+)`", listed[1]) == sorted(DUAL_ENCODERS)
