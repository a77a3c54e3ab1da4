"""Load transformers checkpoints (`hf:DIR_OR_NAME`).

Supported are the dual encoders CLIP, SigLIP and CLAP (fused and unfused), and single encoders of images (`hf_image_encoder`),
sounds (`hf_audio_encoder`) and texts (`hf_text_encoder`), whose outputs are pooled: `hf:CHECKPOINT?pooling=MODE`.
The `get_*_features` methods of transformers 5 return output objects, whose `pooler_output` is the projected embedding.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from mmtune import backbones
from mmtune.backbones import Backbone, LogitScale, Preprocess, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_saved_files, refuse_custom_code, require_file
from mmtune.backbones.checkpoint_options import split_options
from mmtune.backbones.hf_audio_encoder import load_audio_encoder
from mmtune.backbones.hf_audio_preprocess import ClapPreprocess
from mmtune.backbones.hf_image_encoder import load_image_encoder
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.backbones.hf_single_types import modality_of
from mmtune.backbones.hf_snapshot import checkpoint_directory, silence_transformers
from mmtune.backbones.hf_text_encoder import load_text_encoder
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_setter, build
from mmtune.backbones.st_modules import adds_nothing
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, ProcessorMixin

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


class DualEncoder(NamedTuple):
    """The names that transformers uses in one of its dual encoders.

    model: name of the model class
    modalities: modality of the first tower and of the text tower
    modules: attributes of the model that hold the parameters of the first tower, and those of the text tower
    first_token_encoder: attribute of the encoder of which only the first token's output is used; "" if there is none
    """

    model: str
    modalities: tuple[str, str]
    modules: tuple[tuple[str, ...], tuple[str, ...]]
    first_token_encoder: str = ""


DUAL_ENCODERS = {
    "clip": DualEncoder(
        "CLIPModel",
        ("image", "text"),
        (("vision_model", "visual_projection"), ("text_model", "text_projection")),
        "vision_model",
    ),
    "siglip": DualEncoder("SiglipModel", ("image", "text"), (("vision_model",), ("text_model",))),
    "clap": DualEncoder(
        "ClapModel",
        ("audio", "text"),
        (("audio_model", "audio_projection"), ("text_model", "text_projection")),
        "text_model",
    ),
}
"""`model_type` in config.json -> the names used in that dual encoder."""


def load(checkpoint: str) -> Backbone:
    """Load a checkpoint from a local directory or from the Hugging Face hub.

    Hub checkpoints are read through the cache of huggingface_hub; offline, they must already be in that cache. Python code of a
    checkpoint is never run. Raises ModelError if a file is missing or the architecture is not supported.
    """
    silence_transformers()
    checkpoint, options = split_options("hf", checkpoint, ["pooling"])
    directory = checkpoint_directory(checkpoint, "hf")
    if not adds_nothing(directory):
        return backbones.implementation("st").load(checkpoint)
    require_file(directory, ("config.json",), "configuration", "hf")
    refuse_custom_code(directory, "hf")
    if (directory / "adapter_config.json").is_file():
        raise ModelError(
            f"hf:{checkpoint}: the directory also contains an adapter (adapter_config.json), which transformers would apply to "
            "the weights: if it is already merged into them, remove adapter_config.json and adapter_model.safetensors; if not, "
            "merge it first"
        )
    require_file(directory, WEIGHTS, "weights file", "hf")
    kind = _supported_type(directory)
    modality = None if kind in DUAL_ENCODERS else modality_of(kind)
    if modality != "text":
        require_file(directory, PREPROCESSING_FILES, "preprocessing", "hf")
    if modality in (None, "text"):
        require_file(directory, TOKENIZER_FILES, "tokenizer", "hf")
    try:
        return _backbone(directory, load_weights=True, options=options)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as e:
        raise ModelError(f"hf:{checkpoint}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e


def rebuild(directory: Path) -> Backbone:
    """Build the backbone with uninitialised weights from its files in an artifact."""
    silence_transformers()
    refuse_custom_code(directory, "hf")
    return _backbone(directory, load_weights=False, options={})


def _supported_type(directory: Path) -> str:
    """Return the `model_type` in config.json.

    Raises ModelError for a dual encoder that is not in DUAL_ENCODERS, and for a checkpoint that contains only one tower of a
    dual encoder (a "...ModelWithProjection").
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind, architectures = str(config.get("model_type")), list(config.get("architectures") or [])
    except (ValueError, AttributeError) as e:
        raise ModelError(f"hf:{directory}: config.json is not a configuration ({e})") from None
    towers = [k for k in config if k.endswith("_config") and isinstance(config[k], dict) and k != "quantization_config"]
    single = [a for a in architectures if a.endswith("ModelWithProjection")]
    dual = kind in DUAL_ENCODERS
    if "model_type" not in config and "architecture" in config:
        raise ModelError(f"hf:{directory}: this is a checkpoint of timm; write timm:{directory}")
    if single or not dual and (len(towers) > 1 or modality_of(kind) is None):
        raise ModelError(
            f"hf:{directory}: {(single or architectures or [kind])[0]} (model_type {kind!r}) is not supported; supported are "
            f"{', '.join(d.model for d in DUAL_ENCODERS.values())}, and single encoders of images, sounds and texts"
        )
    return kind


def _backbone(directory: Path, load_weights: bool, options: Mapping[str, str]) -> Backbone:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if config.model_type in DUAL_ENCODERS:
        return _dual_encoder(directory, config, load_weights)
    load_tower = {"image": load_image_encoder, "audio": load_audio_encoder, "text": load_text_encoder}
    return load_tower[modality_of(config.model_type)](directory, config, load_weights, options.get("pooling"))


def _dual_encoder(directory: Path, config: "PretrainedConfig", load_weights: bool) -> Backbone:
    import transformers

    kind: str = config.model_type
    names = DUAL_ENCODERS[kind]
    processor = transformers.AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    module: Untyped = build(getattr(transformers, names.model), directory, config, load_weights)
    other, text = names.modalities
    modules = {m: [n for n in owned if hasattr(module, n)] for m, owned in zip(names.modalities, names.modules, strict=True)}

    def encode_text(inputs: dict[str, Tensor]) -> Tensor:
        return module.get_text_features(**inputs).pooler_output

    def tower(modality: str, dim: int, preprocess: Preprocess, encode: Callable[[dict[str, Tensor]], Tensor]) -> Tower:
        return Tower(modality, dim, preprocess, encode, [getattr(module, n) for n in modules[modality]])

    def free_tower(modality: str) -> None:
        for name in modules[modality]:
            setattr(module, name, nn.Identity())

    preprocess, encode_other = _other_tower(kind, module, processor, config)
    tokens = TokenPreprocess(processor.tokenizer, config.text_config, full_length=kind == "siglip")
    dim, text_dim = _dims(config)
    return Backbone(
        "hf",
        module,
        {other: tower(other, dim, preprocess, encode_other), text: tower(text, text_dim, tokens, encode_text)},
        _logit_scales(module, f"{other}->{text}", f"{text}->{other}"),
        read_saved_files(config, processor),
        free_tower,
        attention_setter(module),
        use_cpu_kernels=True,
        first_token_encoders=[getattr(module, names.first_token_encoder)] if names.first_token_encoder else [],
    )


def _other_tower(
    kind: str, module: Untyped, processor: "ProcessorMixin", config: "PretrainedConfig"
) -> tuple[Preprocess, Callable[[dict[str, Tensor]], Tensor]]:
    """Return the preprocessing and the encode function of the image or audio tower."""
    if kind == "clap":
        preprocess = ClapPreprocess(processor.feature_extractor, fused=bool(config.audio_config.enable_fusion))
        return preprocess, lambda inputs: module.get_audio_features(**inputs).pooler_output
    return ImagePreprocess(processor.image_processor), lambda inputs: module.get_image_features(**inputs).pooler_output


def _dims(config: "PretrainedConfig") -> tuple[int, int]:
    """Return the embedding dimensions of the first tower and of the text tower. They can differ only in SigLIP."""
    if config.model_type == "siglip":
        width = int(config.vision_config.hidden_size)
        return width, int(getattr(config.text_config, "projection_size", None) or width)
    return int(config.projection_dim), int(config.projection_dim)


def _logit_scales(module: Untyped, forward: str, backward: str) -> list[LogitScale]:
    """Return the module's logit scales: CLAP has one per direction, CLIP and SigLIP have one for both directions.

    forward, backward: the two directions, e.g. "image->text" and "text->image"
    """
    if hasattr(module, "logit_scale_a"):
        return [LogitScale(module.logit_scale_a, None, [forward]), LogitScale(module.logit_scale_t, None, [backward])]
    return [LogitScale(module.logit_scale, getattr(module, "logit_bias", None), [forward, backward])]
