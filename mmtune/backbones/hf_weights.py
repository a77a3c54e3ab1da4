"""Build transformers modules with the weights of a checkpoint, and select the attention implementation for training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


MASK_EMBEDDINGS = ("mask_token", "masked_spec_embed")
"""Embeddings of masked inputs, which only pretraining uses. They are set to zero if a checkpoint lacks them."""

COMPUTED_BUFFERS = ("position_ids", "relative_position_index")
"""Buffers that transformers computes from the configuration. Some of its versions store them, others do not."""
WINDOW_INDEX = "relative_position_index"
"""The computed buffer of windowed attention that only some versions store, except in CLAP, where all do."""


def build(
    cls: Untyped,
    directory: Path,
    config: "PretrainedConfig",
    load_weights: bool,
    *,
    unused: Sequence[str] = (),
    optional: Sequence[str] = (),
    replaced: Sequence[str] = (),
    family: str = "hf",
) -> nn.Module:
    """Build a module of the transformers class `cls`, in eval mode.

    The weights are always converted to float32, so that fingerprint and embeddings do not depend on the default dtype of a
    version of transformers.

    cls: a model class, or AutoModel
    directory: the checkpoint
    config: its configuration
    load_weights: True loads the checkpoint's weights; False means to build the architecture only, with uninitialised weights
    unused: attributes of the module that the embeddings do not depend on; they are set to None
    optional: attributes of the module that are set to None if the checkpoint has no weights for them. transformers would give
        them random weights, and the model another fingerprint at each load
    replaced: names of inner modules, at any depth, that the caller replaces, so that a checkpoint may lack their weights
    family: the model family, for error messages

    Raises ModelError if the checkpoint lacks other weights of the module.
    """
    if not load_weights:
        # AutoModel has `from_config`; a model class is called with its configuration
        module: nn.Module = cls.from_config(config) if hasattr(cls, "from_config") else cls(config)
        return _without(_without_window_index(module, config), unused).float().eval()
    module, info = cls.from_pretrained(directory, dtype=torch.float32, output_loading_info=True, trust_remote_code=False)
    missing = sorted(k for k in info["missing_keys"] if k.rpartition(".")[2] not in COMPUTED_BUFFERS)
    missing = [k for k in missing if not set(replaced) & set(k.split("."))]
    for name in [k for k in missing if k.rpartition(".")[2] in MASK_EMBEDDINGS]:
        nn.init.zeros_(module.get_parameter(name))
        missing.remove(name)
    tops = {k.split(".")[0] for k in missing}
    if others := [k for k in missing if k.split(".")[0] not in (*unused, *optional)]:
        raise ModelError(
            f"{family}:{directory}: {len(others)} weights are missing from the checkpoint, first {others[0]!r}; the file is "
            "incomplete or belongs to another architecture: download the checkpoint again"
        )
    for p in module.parameters():  # a weight that transformers cut from a fused one is a view, which cannot be saved
        if p.untyped_storage().nbytes() != p.numel() * p.element_size():
            p.data = p.data.clone()
    return _without(_without_window_index(module, config), [*unused, *(n for n in optional if n in tops)]).eval()


def _without_window_index(module: nn.Module, config: "PretrainedConfig") -> nn.Module:
    """Leave WINDOW_INDEX out of the module's state dict, in place, so that it is the same under every version."""
    if config.model_type not in ("clap", "clap_audio_model"):
        for part in module.modules():
            if WINDOW_INDEX in part._buffers:
                part._non_persistent_buffers_set.add(WINDOW_INDEX)
    return module


def _without(module: nn.Module, unused: Sequence[str]) -> nn.Module:
    """Set those of the attributes `unused` that the module has to None, in place, and return the module."""
    for name in unused:
        if hasattr(module, name):
            setattr(module, name, None)
    return module


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
