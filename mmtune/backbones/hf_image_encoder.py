"""Load single image encoders of transformers (ViT, DINOv2, DINOv3, Swin, ConvNeXt, BEiT, SigLIP's vision tower, ...)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtune.backbones import Backbone, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_source_files
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.backbones.hf_weights import attention_setter, build
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

POOLINGS = ("pooler", "cls", "mean")
"""pooler: the model's own pooled output; cls: the first token; mean: the mean of the patches, without cls and register tokens."""
SETTINGS = "pooling.json"
"""File of an artifact with the pooling, and whether the layer of the model's own pooled output was removed."""


def load_image_encoder(directory: Path, config: "PretrainedConfig", load_weights: bool, pooling: str | None = None) -> Backbone:
    """Build an image encoder from an AutoModel and its image processor.

    directory: the checkpoint
    config: its configuration
    load_weights: False means to build the architecture only, with uninitialised weights
    pooling: one of POOLINGS; None means that of the checkpoint's files, without them "pooler" if the model has a pooled output
        and the checkpoint has all its weights, else "cls" if there is such a token, else "mean"

    Raises ModelError if the model does not have that pooling.
    """
    from transformers import AutoImageProcessor, AutoModel

    stored = json.loads((directory / SETTINGS).read_text()) if (directory / SETTINGS).is_file() else {}
    removed = ("pooler",) if stored.get("removed") else ()
    processor = AutoImageProcessor.from_pretrained(directory, trust_remote_code=False)
    module: Untyped = build(AutoModel, directory, config, load_weights, unused=removed, optional=("pooler",))
    module.config.return_dict = True
    select_attention = attention_setter(module)
    module = getattr(module, "vision_model", module)  # earlier versions of transformers nest CLIP's tower in another module
    preprocess = ImagePreprocess(processor)
    modes, dim = _modes(module, preprocess)
    mode = pooling or stored.get("pooling") or modes[0]
    if mode not in modes:
        raise ModelError(f"hf:{directory}: pooling {mode!r}: this model has {', '.join(modes)}")

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        output = module(pixel_values=inputs["pixel_values"])
        if mode == "pooler":
            return output.pooler_output.flatten(1)
        hidden = output.last_hidden_state
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        return hidden[:, 0] if mode == "cls" else hidden[:, _prefix(module.config, inputs["pixel_values"], hidden) :].mean(1)

    settings = {"pooling": mode, "removed": getattr(module, "pooler", module) is None}
    files = read_source_files(directory) | {SETTINGS: (json.dumps(settings, sort_keys=True) + "\n").encode()}
    return Backbone(
        "hf",
        module,
        {"image": Tower("image", dim, preprocess, encode, [module])},
        [],
        files,
        select_attention=select_attention,
        use_cpu_kernels=True,
        info={"pooling": mode},
    )


def _modes(module: Untyped, preprocess: ImagePreprocess) -> tuple[list[str], int]:
    """Return the poolings that a model has, best first, and the dimension of its embeddings, by encoding a black image."""
    import PIL.Image

    pixels = preprocess.collate([preprocess(PIL.Image.new("RGB", (64, 64)))])["pixel_values"]
    with torch.inference_mode():
        output = module(pixel_values=pixels)
    hidden = output.last_hidden_state
    modes = ["mean"]
    if hidden.ndim == 3 and _prefix(module.config, pixels, hidden):
        modes = ["cls", *modes]
    if getattr(output, "pooler_output", None) is not None:
        modes = ["pooler", *modes]
    return modes, hidden.shape[1] if hidden.ndim == 4 else hidden.shape[2]


def _prefix(config: Untyped, pixels: Tensor, hidden_BTC: Tensor) -> int:
    """Return the number of tokens before the patches: cls, distillation and register tokens; the pooled vector of DINOv3's ConvNeXt."""
    if config.model_type == "dinov3_convnext":
        return 1
    size = getattr(config, "patch_size", None)
    if not isinstance(size, int):
        return 0
    patches = (pixels.shape[-2] // size) * (pixels.shape[-1] // size)
    return max(0, hidden_BTC.shape[1] - patches)
