"""Load single image encoders of transformers (ViT, DINOv2, DINOv3, Swin, ConvNeXt, BEiT, SigLIP's vision tower, ...)."""

import functools
import json
from collections.abc import Callable
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
    _switch_off_side_effects(module)
    select_attention = attention_setter(module)
    module = getattr(module, "vision_model", module)  # earlier versions of transformers nest CLIP's tower in another module
    preprocess = ImagePreprocess(processor)
    dims = _dims(module, preprocess, f"hf:{directory}")
    mode = pooling or stored.get("pooling") or next(iter(dims))
    if mode not in dims:
        raise ModelError(f"hf:{directory}: pooling {mode!r}: this model has {', '.join(dims)}")

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        output = module(pixel_values=inputs["pixel_values"])
        if mode == "pooler":
            return output.pooler_output.flatten(1)
        hidden = output.last_hidden_state
        if mode == "cls" and hasattr(output, "cls_token_value"):  # CvT
            return output.cls_token_value[:, 0]
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        return hidden[:, 0] if mode == "cls" else hidden[:, _prefix(module.config, inputs["pixel_values"], hidden) :].mean(1)

    settings = {"pooling": mode, "removed": getattr(module, "pooler", module) is None}
    files = read_source_files(directory) | {SETTINGS: (json.dumps(settings, sort_keys=True) + "\n").encode()}
    return Backbone(
        "hf",
        module,
        {"image": Tower("image", dims[mode], preprocess, encode, [module])},
        [],
        files,
        select_attention=select_attention,
        use_cpu_kernels=True,
        info={"pooling": mode},
    )


def _switch_off_side_effects(module: Untyped) -> None:
    """Remove what makes a forward pass depend on earlier ones or on chance, in place.

    LeViT keeps its attention biases in evaluation, also when other weights are loaded. BEiT keeps indices, which cannot be used
    in training if they were computed in inference mode. DINOv3 moves positions at random in training.
    """
    for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        if hasattr(module.config, name):
            setattr(module.config, name, None)
    for part in module.modules():
        if hasattr(part, "attention_bias_cache"):
            part.register_forward_pre_hook(_clear_attention_biases)
        if hasattr(part, "generate_relative_position_index"):
            index = type(part).generate_relative_position_index
            part.generate_relative_position_index = functools.partial(_outside_inference_mode, index)


def _clear_attention_biases(part: Untyped, inputs: object) -> None:
    part.attention_bias_cache = {}


@torch.inference_mode(False)
def _outside_inference_mode(function: Callable[[tuple[int, int]], Tensor], window: tuple[int, int]) -> Tensor:
    return function(window)


def _dims(module: Untyped, preprocess: ImagePreprocess, where: str) -> dict[str, int]:
    """Return {pooling: dimension of its embeddings}, best pooling first, by encoding two black images of different shapes.

    where: the checkpoint, for messages

    Raises ModelError if the image processor makes them of different sizes, so that they could not share a batch.
    """
    import PIL.Image

    items = [preprocess(PIL.Image.new("RGB", size)) for size in ((64, 96), (96, 64))]
    if items[0]["pixel_values"].shape != items[1]["pixel_values"].shape:
        raise ModelError(
            f"{where}: its image processor gives images of other shapes other sizes, which cannot share a batch; set size to "
            "{height, width}, or do_center_crop to true, in preprocessor_config.json"
        )
    pixels = preprocess.collate(items[:1])["pixel_values"]
    with torch.inference_mode():
        output = module(pixel_values=pixels)
    hidden = output.last_hidden_state
    dims = {"mean": hidden.shape[1] if hidden.ndim == 4 else hidden.shape[2]}
    if hasattr(output, "cls_token_value") or hidden.ndim == 3 and _prefix(module.config, pixels, hidden):
        dims = {"cls": dims["mean"]} | dims
    pooled = getattr(output, "pooler_output", None)
    return dims if pooled is None else {"pooler": pooled.flatten(1).shape[1]} | dims


def _prefix(config: Untyped, pixels: Tensor, hidden_BTC: Tensor) -> int:
    """Return the number of tokens before the patches: cls, distillation and register tokens; the pooled vector of DINOv3's ConvNeXt; the class
    token of PVT's last stage."""
    if config.model_type in ("dinov3_convnext", "pvt"):
        return 1
    size = getattr(config, "patch_size", None)
    if not isinstance(size, int):
        return 0
    patches = (pixels.shape[-2] // size) * (pixels.shape[-1] // size)
    return max(0, hidden_BTC.shape[1] - patches)
