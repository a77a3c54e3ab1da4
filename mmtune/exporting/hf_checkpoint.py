"""Write one backbone as a checkpoint of transformers (or of timm, which transformers reads): weights, configuration, preprocessing."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.backbones import Backbone
from mmtune.backbones.checkpoint_files import Untyped
from mmtune.backbones.hf_dual_encoder_table import DUAL_ENCODERS
from mmtune.backbones.hf_projected_tower import PROJECTED_TOWERS
from mmtune.runtime.files import write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"


def dual_encoder_type(backbone: Backbone) -> str:
    """Return the `model_type` of a dual encoder of transformers, or "" for anything else."""
    kind = model_type(backbone)
    return kind if backbone.family == "hf" and kind in DUAL_ENCODERS and not projected_class(backbone) else ""


def model_type(backbone: Backbone) -> str:
    """Return the `model_type` in the backbone's config.json, or ""."""
    return str(json.loads(backbone.files.get(CONFIG, b"{}")).get("model_type", ""))


def projected_class(backbone: Backbone) -> str:
    """Return the class of a single tower that was saved with its projection, or ""."""
    return next(
        (a for a in json.loads(backbone.files.get(CONFIG, b"{}")).get("architectures") or [] if a in PROJECTED_TOWERS), ""
    )


def single_tower_class(backbone: Backbone, modality: str) -> str:
    """Return the class of transformers for one tower of a dual encoder with its projection, or "" if it has none."""
    prefix = DUAL_ENCODERS[dual_encoder_type(backbone)].model.removesuffix("Model")
    return next(
        (c for c, t in PROJECTED_TOWERS.items() if c.startswith(prefix) and t.modality == modality and "Siglip" not in c), ""
    )


def write_checkpoint(backbone: Backbone, directory: Path, *, only: str = "") -> None:
    """Write a backbone of the family hf as a directory that `from_pretrained` of transformers loads.

    only: modality of the one tower of a dual encoder that is written, as its class with projection
    """
    module: Untyped = backbone.module
    directory.mkdir(parents=True, exist_ok=True)
    state = _upstream_state(module)
    module.save_pretrained(directory, state_dict=state)
    if (directory / "generation_config.json").exists():
        (directory / "generation_config.json").unlink()
    for name, data in backbone.files.items():  # as the checkpoint had them: what transformers writes differs between versions
        write_bytes(directory / name, data)
    config = json.loads(backbone.files[CONFIG])
    for key in ("torch_dtype", "dtype", "quantization_config"):
        config.pop(key, None)
    config["dtype"] = "float32"
    config["architectures"] = [type(module).__name__]
    if only:
        config = _single_config(config, only, single_tower_class(backbone, only))
    write_json(directory / CONFIG, config)


def _upstream_state(module: Untyped) -> "dict[str, Tensor]":
    """Return the weights under the names that transformers' own class has."""
    state: dict[str, Tensor] = module.state_dict()
    if hasattr(module.config, "temperature_init_value") and "logit_scale" in state:  # replaced when the checkpoint was loaded
        state["temperature"] = (-state.pop("logit_scale")).exp()
    return state


def _single_config(config: dict[str, object], modality: str, cls: str) -> dict[str, object]:
    """Return the configuration of one tower of a dual encoder."""
    key = next(k for k in config if k.endswith("_config") and _is_config_of(k, cls))
    inner = dict(config[key]) if isinstance(config[key], dict) else {}  # type: ignore[call-overload]  # JSON
    inner.setdefault("model_type", f"{config['model_type']}_{key.removesuffix('_config')}_model")
    return inner | {"projection_dim": config.get("projection_dim", 512), "architectures": [cls], "dtype": "float32"}


def _is_config_of(key: str, cls: str) -> bool:
    return key.removesuffix("_config") in cls.lower()
