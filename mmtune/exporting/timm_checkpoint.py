"""Write a tower of timm in timm's local-dir layout, which transformers reads, too (TimmWrapperModel)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.backbones import Backbone
from mmtune.backbones.timm import CONFIG, PREPROCESSING
from mmtune.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn


def unsupported(backbone: Backbone) -> str:
    """Return why timm's layout cannot hold a tower, or "" if it can."""
    config = json.loads(backbone.files[CONFIG])
    if config["pooling"] or config["resized"]:
        return "timm's layout does not record another pooling or input size than the architecture's own"
    return ""


def write_timm_checkpoint(backbone: Backbone, directory: Path) -> None:
    """Write config.json and model.safetensors; `timm:DIR` and `AutoModel.from_pretrained(DIR)` load them."""
    from timm.models import save_for_hf

    config = json.loads(backbone.files[CONFIG])
    module: nn.Module = backbone.module
    data_config = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k in PREPROCESSING}
    directory.mkdir(parents=True, exist_ok=True)
    save_for_hf(
        module,
        str(directory),
        model_config={"num_classes": 0},
        safe_serialization=True,
        data_config=data_config,
    )
    document = read_json(directory / "config.json")
    document.pop("model_args", None)  # timm writes its defaults, too; only arguments that were given belong to the model
    fixed = bool((getattr(module, "pretrained_cfg", None) or {}).get("fixed_input_size"))
    document["pretrained_cfg"]["fixed_input_size"] = fixed  # without it, timm builds a ViT for its default size of 224 pixels
    write_json(directory / "config.json", document | ({"model_args": config["arguments"]} if config["arguments"] else {}))
