"""Build transformers modules with the weights of a checkpoint, and select the attention implementation for training."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def build(
    cls: Untyped,
    directory: Path,
    config: "PretrainedConfig",
    load_weights: bool,
    *,
    unused: Sequence[str] = (),
    family: str = "hf",
) -> nn.Module:
    """Build a module of the transformers class `cls`, in eval mode.

    The weights are always converted to float32, so that fingerprint and embeddings do not depend on the default dtype of a
    version of transformers.

    cls: a model class, or AutoModel
    directory: the checkpoint
    config: its configuration
    load_weights: True loads the checkpoint's weights; False means to build the architecture only, with uninitialised weights
    unused: attributes of the module that the embeddings do not depend on; they are removed, so that their weights may be missing
    family: the model family, for error messages

    Raises ModelError if the checkpoint lacks weights of the module.
    """
    if not load_weights:
        # AutoModel has `from_config`; a model class is called with its configuration
        module: nn.Module = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
        return _without(module, unused).float().eval()
    module, info = cls.from_pretrained(directory, dtype=torch.float32, output_loading_info=True, trust_remote_code=False)
    missing = sorted(k for k in info["missing_keys"] if "position_ids" not in k and k.split(".")[0] not in unused)
    if missing:
        raise ModelError(
            f"{family}:{directory}: {len(missing)} weights are missing from the checkpoint, first {missing[0]!r}; the file is "
            "incomplete or belongs to another architecture: download the checkpoint again"
        )
    return _without(module, unused).eval()


def _without(module: nn.Module, unused: Sequence[str]) -> nn.Module:
    """Set those of the attributes `unused` that the module has to None, in place, and return the module."""
    for name in unused:
        if hasattr(module, name):
            setattr(module, name, None)
    return module


def has_weights(directory: Path, part: str) -> bool:
    """Whether the weights of a checkpoint have a layer called `part` (with or without the prefix of a larger model).

    True if the names of the weights cannot be read without unpickling the file.
    """
    from safetensors import safe_open

    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = list(json.loads(index.read_text())["weight_map"])
    elif (directory / "model.safetensors").is_file():
        with safe_open(directory / "model.safetensors", framework="pt") as f:
            names = list(f.keys())
    else:
        return True
    return any(part in name.split(".") for name in names)


def attention_setter(module: nn.Module) -> Callable[[str, bool], None]:
    """Return the `Backbone.select_attention` function of a transformers model.

    On a CPU in bf16 it selects eager attention, because the backward pass of torch's fused attention is slow: it takes 350 ms
    of an 800 ms training step with 64 images. With eager attention the step takes 500 ms (torch 2.14).
    """
    model = cast("PreTrainedModel", module)
    default = model.config._attn_implementation

    def select_attention(device: str, low_precision: bool) -> None:
        model.set_attn_implementation("eager" if device == "cpu" and low_precision else default)

    return select_attention
