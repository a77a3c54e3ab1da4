"""A fingerprint changes with everything that embeddings depend on, and with nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import mmtune
from mmtune.backbones.canonical_files import canonical_files, has_no_effect, normal
from tests.support import checkpoints
from tests.support.dual_checkpoints import MAKERS


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    makers = {
        "clip": checkpoints.clip,
        "siglip": checkpoints.siglip,
        "clap": checkpoints.clap,
        "chinese": MAKERS["chinese_clip"],
    }
    made = {name: make(root / name) for name, make in makers.items()}
    return made | {"text": checkpoints.text_encoder(root / "text", "mean")}


def files_of(directory):
    return {p.name: p.read_bytes() for p in directory.glob("*") if p.suffix != ".safetensors" and p.is_file()}


def edit(files, name, change):
    document = json.loads(files[name])
    change(document)
    return files | {name: json.dumps(document).encode()}


def as_other_versions_write_it(files):
    """With another order and formatting, keys of their own, all defaults, and merges as lists."""
    import transformers

    config = json.loads(files["config.json"])
    everything = json.loads(transformers.AutoConfig.for_model(**config).to_json_string(use_diff=False))
    everything |= {"transformers_version": "4.99.0", "_name_or_path": "/somewhere", "torch_dtype": "bfloat16", "num_beams": 4}
    other = {"config.json": json.dumps(dict(reversed(everything.items()))).encode()}
    if "processor_config.json" in files:
        inner = json.loads(files["processor_config.json"])
        for key in ("image_processor", "feature_extractor"):
            if key in inner:
                alone = dict(inner[key])
                alone.pop("rescale_factor", None)  # a default that earlier versions did not write
                old = {"data_format": "channels_first", "processor_class": "P", "device": None}
                other["preprocessor_config.json"] = json.dumps(alone | old, indent=7).encode()
    elif "preprocessor_config.json" in files:
        other["processor_config.json"] = json.dumps({"image_processor": json.loads(files["preprocessor_config.json"])}).encode()
    tokenizer = json.loads(files["tokenizer.json"])
    cut = {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}
    pad = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
    tokenizer |= {"truncation": cut, "padding": pad | {"pad_token": "x"}}
    if "merges" in tokenizer["model"]:
        tokenizer["model"] |= {"merges": [m.split(" ") if isinstance(m, str) else m for m in tokenizer["model"]["merges"]]}
    tokenizer["model"]["byte_fallback"] = tokenizer["model"].get("byte_fallback", False)
    other["tokenizer.json"] = json.dumps(tokenizer, ensure_ascii=False, indent=1).encode()
    settings = json.loads(files["tokenizer_config.json"])
    tokens = {k: settings.pop(k) for k in list(settings) if k.endswith("_token")}
    settings |= {"name_or_path": "/somewhere", "clean_up_tokenization_spaces": True, "tokenizer_file": None}
    settings["tokenizer_class"] = settings["tokenizer_class"] + "Fast"
    other["tokenizer_config.json"] = json.dumps(settings).encode()
    other["special_tokens_map.json"] = json.dumps({k: {"content": v, "lstrip": False} for k, v in tokens.items()}).encode()
    return other


@pytest.mark.parametrize("name", ["clip", "siglip", "clap", "chinese", "text"])
def test_what_another_version_writes_is_the_same(made, name):
    files = files_of(made[name])
    other = as_other_versions_write_it(files)
    assert all(files.get(n) != data for n, data in other.items())
    assert canonical_files(other) == canonical_files({n: d for n, d in files.items() if n.endswith(".json")})


CHANGES = {
    "activation": ("config.json", lambda d: d["text_config"].update(hidden_act="relu")),
    "layer norm": ("config.json", lambda d: d["vision_config"].update(layer_norm_eps=1e-3)),
    "heads": ("config.json", lambda d: d["text_config"].update(num_attention_heads=4)),
    "eos": ("config.json", lambda d: d["text_config"].update(eos_token_id=3)),
    "bos": ("config.json", lambda d: d["text_config"].update(bos_token_id=3)),
    "pad": ("config.json", lambda d: d["text_config"].update(pad_token_id=3)),
    "projection": ("config.json", lambda d: d.update(projection_dim=25)),
    "a key of tomorrow": ("config.json", lambda d: d.update(pooling_of_tomorrow="max")),
    "mean": ("processor_config.json", lambda d: d["image_processor"].update(image_mean=[0.5, 0.5, 0.5])),
    "std": ("processor_config.json", lambda d: d["image_processor"].update(image_std=[0.5, 0.5, 0.5])),
    "resample": ("processor_config.json", lambda d: d["image_processor"].update(resample=2)),
    "size": ("processor_config.json", lambda d: d["image_processor"].update(size={"shortest_edge": 40})),
    "no crop": ("processor_config.json", lambda d: d["image_processor"].update(do_center_crop=False)),
    "no mean": ("processor_config.json", lambda d: d["image_processor"].update(do_normalize=False)),
    "scale": ("processor_config.json", lambda d: d["image_processor"].update(rescale_factor=0.5)),
    "limit": ("tokenizer_config.json", lambda d: d.update(model_max_length=20)),
    "padding side": ("tokenizer_config.json", lambda d: d.update(padding_side="left")),
    "eos token": ("tokenizer_config.json", lambda d: d.update(eos_token="!")),
    "tokenizer": ("tokenizer_config.json", lambda d: d.update(tokenizer_class="BertTokenizer")),
    "vocabulary": ("tokenizer.json", lambda d: d["model"]["vocab"].update({"a": 1, "b": 0})),
    "merges": ("tokenizer.json", lambda d: d["model"].update(merges=["a b</w>"])),
    "normaliser": ("tokenizer.json", lambda d: d.update(normalizer=None)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_embeddings_depend_on_changes_it(made, change):
    files = files_of(made["clip"])
    assert canonical_files(edit(files, *CHANGES[change])) != canonical_files(files)


def test_pooling_and_weights_change_it(made, tmp_path):
    text = f"hf:{made['text']}"
    assert mmtune.load(text).fingerprint != mmtune.load(f"{text}?pooling=cls").fingerprint
    other = checkpoints.clip(tmp_path / "other", seed=1)
    assert files_of(other) == files_of(made["clip"])
    assert mmtune.load(f"hf:{other}").fingerprint != mmtune.load(f"hf:{made['clip']}").fingerprint


def test_two_spellings_of_the_settings_in_old_checkpoints_of_openai():
    """As OpenAI's own folder has them, and as today's transformers writes them."""
    old = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "resample": 3,
        "size": 224,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    from transformers import CLIPImageProcessor

    new = {"image_processor": json.loads(CLIPImageProcessor().to_json_string()), "processor_class": "CLIPProcessor"}
    files = {"preprocessor_config.json": json.dumps(old).encode()}, {"processor_config.json": json.dumps(new).encode()}
    assert canonical_files(files[0]) == canonical_files(files[1])


def test_defaults_are_those_of_transformers():
    """If this fails, transformers has changed a default. The stored ones must stay: fingerprints depend on them."""
    import transformers

    stored = json.loads((Path(mmtune.__file__).parent / "backbones" / "config_defaults.json").read_text())
    assert len(stored["configurations"]) > 60
    for kind, defaults in stored["configurations"].items():
        if kind in transformers.CONFIG_MAPPING:
            now = transformers.CONFIG_MAPPING[kind]().to_dict()
            assert {k: normal(now[k]) for k in defaults if k in now and not has_no_effect(k)} == {
                k: v for k, v in defaults.items() if k in now
            }


FINGERPRINTS = """
import json, sys, transformers, mmtune
found = {d: mmtune.load(f"hf:{d}").fingerprint for d in sys.argv[1:]}
print(json.dumps([transformers.__version__, found]))
"""


def elsewhere(directories, **environment):
    """[version of transformers, fingerprints] of another process with other environment variables."""
    python = environment.pop("python", sys.executable)
    env = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")} | environment
    command = [python, "-c", FINGERPRINTS, *map(str, directories)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_the_network_mode_does_not_change_it(made):
    assert elsewhere(made.values(), HF_HUB_OFFLINE="1") == elsewhere(made.values(), HF_HUB_OFFLINE="0")


@pytest.mark.slow
def test_the_version_of_transformers_does_not_change_it(made, tmp_path):
    """Checkpoints and an artifact have the same fingerprint under another version.

    MMTUNE_OTHER_PYTHONPATH names a directory with another version of transformers; without it, 5.3.0 is installed with pip.
    """
    other = os.environ.get("MMTUNE_OTHER_PYTHONPATH", "")
    if not other:
        other = str(tmp_path / "packages")
        packages = ["transformers==5.3.0", "tokenizers==0.22.2", "huggingface_hub==1.5.0"]
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", other, *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(
                f"a second version of transformers cannot be installed: {(done.stderr or done.stdout).splitlines()[-1]}"
            )
    directories = [*made.values(), MAKERS["siglip2"](tmp_path / "siglip2"), *renamed_architectures(tmp_path)]
    here = {str(d): mmtune.load(f"hf:{d}").fingerprint for d in directories}
    root = str(Path(__file__).parents[2])
    version, there = elsewhere(directories, PYTHONPATH=f"{other}:{root}", HF_HUB_OFFLINE="1")
    import transformers

    assert version != transformers.__version__ and there == here
    environment = os.environ | {"PYTHONPATH": f"{other}:{root}", "HF_HUB_OFFLINE": "1"}
    for n, directory in enumerate(directories):  # artifacts saved here are read there, and back
        model = mmtune.load(f"hf:{directory}")
        saved = model.save(tmp_path / f"{n}.here")
        arguments = [str(tmp_path / f"{n}.here"), str(tmp_path / f"{n}.there"), next(iter(model.towers))]
        done = subprocess.run([sys.executable, "-c", SAVE_AGAIN, *arguments], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        document = json.loads(done.stdout.splitlines()[-1])
        back = mmtune.load(tmp_path / f"{n}.there")
        assert document["fingerprint"] == saved == back.fingerprint, directory
        for loaded in (back.encode(**{arguments[2]: VALUES[arguments[2]]}), np.array(document["vectors"])):
            np.testing.assert_allclose(loaded, model.encode(**{arguments[2]: VALUES[arguments[2]]}), atol=1e-5)


VALUES: dict[str, list[object]] = {
    "image": [PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))],
    "audio": [(np.random.default_rng(0).standard_normal(9000).astype(np.float32), 48000)],
    "text": ["a red bag", "blue"],
}
SAVE_AGAIN = """
import json, sys, mmtune
from tests.model.test_fingerprint import VALUES
source, target, modality = sys.argv[1:]
model = mmtune.load(source)
print(json.dumps({"fingerprint": model.save(target), "vectors": model.encode(**{modality: VALUES[modality]}).tolist()}))
"""


def renamed_architectures(root):
    """Checkpoints whose modules have other names in transformers 5.3, as they are published."""
    import transformers as t
    from safetensors.torch import load_file, save_file

    block = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    swin = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    models = {
        "vit": t.ViTModel(t.ViTConfig(**block, intermediate_size=48)),
        "dinov2": t.Dinov2Model(t.Dinov2Config(**block)),
        "dinov2_swiglu": t.Dinov2Model(t.Dinov2Config(**block, use_swiglu_ffn=True)),
        "dinov3": t.DINOv3ViTModel(t.DINOv3ViTConfig(**block, intermediate_size=48)),
        "beit": t.BeitModel(t.BeitConfig(**block, intermediate_size=48)),
        "swin": t.SwinModel(t.SwinConfig(**swin)),
        "clip_vision": t.CLIPVisionModel(t.CLIPVisionConfig(**block, intermediate_size=48)),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        t.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(root / name)
    MAKERS["altclip"](root / "altclip")
    MAKERS["vision-text-dual-encoder"](root / "vision_text")
    for name in ("clip_vision", "swin", "altclip"):  # published files have the names of earlier versions
        path = root / name / "model.safetensors"
        names = {
            "clip_vision": ("", "vision_model."),
            "altclip": ("vision_model.encoder.layer.", "vision_model.encoder.layers."),
        }
        old, new = names.get(name, ("attention.relative_position_bias.", "attention.self."))
        weights = {new + k if not old else k.replace(old, new): v for k, v in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})
    return [root / name for name in (*models, "altclip", "vision_text")]


def test_adapters_fit_the_base_whatever_wrote_its_files(made, tmp_path):
    """A base whose files another version has written anew is the same base; one with another activation is not."""
    base = made["clip"]
    rewritten = shutil.copytree(base, tmp_path / "rewritten")
    for name, data in as_other_versions_write_it(files_of(base)).items():
        (rewritten / name).write_bytes(data)
    (rewritten / "processor_config.json").unlink()
    assert mmtune.load(f"hf:{rewritten}").fingerprint == mmtune.load(f"hf:{base}").fingerprint
    config = json.loads((rewritten / "config.json").read_text())
    config["text_config"]["hidden_act"] = "relu"
    (rewritten / "config.json").write_text(json.dumps(config))
    assert mmtune.load(f"hf:{rewritten}").fingerprint != mmtune.load(f"hf:{base}").fingerprint
