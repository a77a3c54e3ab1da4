"""Checkpoints, and data without negatives, from public bug reports of other tools: the right value for each."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import mmtune
from mmtune.errors import ModelError
from tests.cases.conftest import Verb
from tests.support import checkpoints


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_quickgelu_checkpoint_gets_quickgelu(tmp_path: Path) -> None:
    """open_clip #771: `RN50/openai` was trained with QuickGELU under a name that builds GELU towers."""
    code = f"""
import open_clip, torch, os
from safetensors.torch import save_file
torch.manual_seed(0)
state = open_clip.create_model("RN50-quickgelu").state_dict()
for k in state:
    if k.endswith("mlp.c_fc.weight"): state[k] = state[k] * 3
    if k.endswith("mlp.c_proj.weight"): state[k] = state[k] * 6
d = {str(tmp_path)!r} + "/hub/models--timm--resnet50_clip.openai"
os.makedirs(d + "/snapshots/" + "0" * 40); os.makedirs(d + "/refs"); open(d + "/refs/main", "w").write("0" * 40)
save_file({{k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}},
          d + "/snapshots/" + "0" * 40 + "/open_clip_model.safetensors")
import mmtune
z = torch.from_numpy(mmtune.load("open_clip:RN50/openai", device="cpu").encode(text=["boot 0", "boot 1"]))
for name in ("RN50-quickgelu", "RN50"):
    m = open_clip.create_model(name, pretrained="openai").eval()
    with torch.no_grad(): want = torch.nn.functional.normalize(m.encode_text(open_clip.get_tokenizer(name)(["boot 0", "boot 1"])), dim=-1)
    print(name, float((z - want).abs().max()))
"""
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    away = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("RN50")}
    assert away["RN50-quickgelu"] < 1e-5 < 1e-3 < away["RN50"]


def test_a_merged_model_with_a_left_over_adapter_is_refused(tmp_path: Path) -> None:
    """peft #1381: the merged model was saved into the folder where the adapter lies; transformers would apply the adapter again."""
    from peft import LoraConfig, get_peft_model
    from transformers import CLIPModel

    checkpoints.clip(tmp_path / "base")
    lora = LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(CLIPModel.from_pretrained(tmp_path / "base"), lora)
    tuned.save_pretrained(tmp_path / "merged")
    tuned.save_pretrained(tmp_path / "alone")
    merged = tuned.merge_and_unload()
    for name in ("merged", "clean"):
        merged.save_pretrained(tmp_path / name)
        for file in (tmp_path / "base").iterdir():
            if file.name not in ("model.safetensors", "config.json"):
                shutil.copy(file, tmp_path / name)
    shutil.copytree(tmp_path / "base", tmp_path / "both")  # the adapter was saved into the folder of its base
    for file in (tmp_path / "alone").iterdir():
        shutil.copy(file, tmp_path / "both")
    for name, message in (
        ("merged", "also contains an adapter"),
        ("both", "also contains an adapter"),
        ("alone", "an adapter of peft"),
    ):
        with pytest.raises(ModelError, match=message) as e:
            mmtune.load(f"hf:{tmp_path / name}")
        assert "adapter_config.json" in str(e.value) and "\n" not in str(e.value)
    (tmp_path / "merged" / "adapter_config.json").unlink()
    (tmp_path / "merged" / "adapter_model.safetensors").unlink()
    texts = ["boot", "shoe"]
    base, clean, alone = (mmtune.load(f"hf:{tmp_path / n}").encode(text=texts) for n in ("base", "clean", "merged"))
    assert np.array_equal(clean, alone)
    assert np.abs(clean - base).max() > 1e-3  # the adapter makes a difference


def test_other_dual_encoders_load_or_are_refused_in_one_line(verb: Verb, tmp_path: Path) -> None:
    """Chinese-CLIP #347, transformers #39269 (SigLIP2): an exit status of 0, or 2 with one line."""
    from transformers import (
        BertConfig,
        BertTokenizerFast,
        ChineseCLIPConfig,
        ChineseCLIPImageProcessor,
        ChineseCLIPModel,
        CLIPVisionConfig,
        Siglip2Config,
        Siglip2ImageProcessor,
        Siglip2Model,
        VisionTextDualEncoderConfig,
        VisionTextDualEncoderModel,
    )

    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    vocab = {w: i for i, w in enumerate(names)}
    text = small | {"vocab_size": len(vocab), "max_position_embeddings": 32}
    vision = small | {"image_size": 32, "patch_size": 8}
    chinese = ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    ChineseCLIPModel(chinese).save_pretrained(tmp_path / "zh")
    pictures = ChineseCLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pictures.save_pretrained(tmp_path / "zh")
    siglip2 = Siglip2Config(
        text_config=small | {"vocab_size": 100, "max_position_embeddings": 16},
        vision_config=small | {"num_patches": 16, "patch_size": 8},
    )
    Siglip2Model(siglip2).save_pretrained(tmp_path / "s2")
    Siglip2ImageProcessor(patch_size=8, max_num_patches=16).save_pretrained(tmp_path / "s2")
    both = VisionTextDualEncoderConfig.from_vision_text_configs(
        CLIPVisionConfig(**vision), BertConfig(**small, vocab_size=len(vocab)), projection_dim=24
    )
    VisionTextDualEncoderModel(config=both).save_pretrained(tmp_path / "vtde")
    shutil.copy(tmp_path / "zh" / "preprocessor_config.json", tmp_path / "vtde")
    with tarfile.open(tmp_path / "words.tar", "w") as tar:
        for i in range(3):
            add(tar, f"{i}.txt", f"boot {i}".encode())
    for name in ("zh", "s2", "vtde"):
        BertTokenizerFast(vocab=vocab, model_max_length=16).save_pretrained(tmp_path / name)
        status, _, err = verb(
            "embed", f"hf:{tmp_path / name}", tmp_path / "words.tar", "--out", tmp_path / f"e_{name}", "--quiet"
        )
        assert status in (0, 2), err
        if status == 2:
            assert len(err.strip().splitlines()) == 1


def test_data_without_any_negative_are_refused(verb: Verb, tmp_path: Path) -> None:
    """pytorch-metric-learning #744: --group names a constant column, so every loss is 0 from the first step."""
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for i in range(8):
            add(tar, f"{i}.json", json.dumps({"group": "all"}).encode())
            add(tar, f"{i}.png", png(i))
            add(tar, f"{i}.txt", f"boot {i}".encode())
    _, out, err = verb("doctor", tmp_path / "one.tar")
    assert "negative" in (out + err).lower()
    (tmp_path / "recipe.yaml").write_text(
        "model: tiny:clip\ndata: {train: '???'}\nobjective: [{loss: info_nce, positives: mask}]\ntrain: {epochs: 1, batch_size: 4}\n"
    )
    status, _, err = verb("train", tmp_path / "recipe.yaml", f"data.train={tmp_path / 'one.tar'}", f"run.dir={tmp_path / 'r'}")
    assert status == 2 and "negative" in err.lower()
