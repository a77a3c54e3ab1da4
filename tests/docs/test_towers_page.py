"""The tables and lists of docs/towers.md are those of the code."""

import re
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from mmtune.backbones import TABLE, hf_audio_encoder, hf_image_encoder, token_pooling
from mmtune.backbones.hf_dual_encoder_table import DUAL_ENCODERS
from mmtune.backbones.hf_projected_tower import PROJECTED_TOWERS
from mmtune.backbones.hf_single_types import SOUND_MODELS, VISION_TOWERS, modality_of
from mmtune.backbones.st_modules import AFTER_TRANSFORMER
from mmtune.recipe.tune_block import WAYS

PAGE = (Path(__file__).parents[2] / "docs" / "towers.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.split("\n") if line.startswith("| `")]


def item(start: str) -> str:
    """The list item that begins with `start`, on one line."""
    return re.search(rf"^- {start}.*?(?=^- |^$)", PAGE, re.M | re.S).group().replace("\n", " ")


def test_every_family_has_a_row():
    built_in = {name for name, target in TABLE.items() if target.startswith("mmtune.")}  # not what other tests registered
    assert {name for row in ROWS for name in re.findall(r"`(\w+):`", row[0])} == built_in


def test_poolings_and_methods_are_those_of_the_code():
    rows = {row[0]: row for row in ROWS}
    assert rows["`hf:` image encoders"][2].split(", ") == list(hf_image_encoder.POOLINGS)
    assert set(re.findall(r"pooler|cls|mean|max", rows["`hf:` sound encoders"][2])) == set(hf_audio_encoder.POOLINGS)
    assert set(rows["`hf:` text encoders and decoders"][2].split(", ")) == set(token_pooling.POOLINGS)
    assert all(set(row[3].split(", ")) <= set(WAYS) for row in ROWS)
    full = [row for row in ROWS if row[3] == ", ".join(["full", "head", "lora", "qlora", "partial", "frozen"])]
    assert len(full) == len(ROWS) - 2  # network files and the small test towers


def test_lists_of_architectures_are_those_of_the_code():
    assert set(re.findall(r"`([\w-]+)`", item("Dual").split(":", 1)[1])) - {"model_type"} == set(DUAL_ENCODERS)
    assert set(re.findall(r"`(\w+)`", item("One tower"))) == set(PROJECTED_TOWERS)
    assert set(re.findall(r"`([\w-]+)`", item("Sounds"))) == set(SOUND_MODELS)
    images = {*VISION_TOWERS, *(k for k in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES if modality_of(k) == "image")}
    assert set(re.findall(r"`([\w-]+)`", item("Images"))) - {"model_type", "size", "do_center_crop"} == images
    assert all(kind in PAGE for kind in AFTER_TRANSFORMER)


def test_modalities_of_architectures():
    kinds = {"vit": "image", "swin": "image", "dinov3_vit": "image", "resnet": "image", "hubert": "audio", "bert": "text"}
    kinds |= {"qwen3": "text", "t5": "text", "modernbert": "text", "encodec": None, "sam": None, "clip_vision_model": "image"}
    assert {kind: modality_of(kind) for kind in kinds} == kinds
