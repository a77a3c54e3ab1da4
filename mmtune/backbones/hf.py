"""Transformers checkpoints, `hf:DIR_OR_NAME`: dual encoders (CLIP, SigLIP, CLAP fused or not) and text encoders with pooling.

transformers 5 returns output objects from get_*_features: `.pooler_output` is the projected vector.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_saved_files, refuse_custom_code, require_file
from mmtune.backbones.hf_audio_preprocess import ClapPreprocess
from mmtune.backbones.hf_image_preprocess import ImagePreprocess
from mmtune.backbones.hf_text_encoder import load_text_encoder
from mmtune.backbones.hf_tokenizer import TokenPreprocess
from mmtune.backbones.hf_weights import attention_switch, build
from mmtune.errors import ModelError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


class DualEncoder(NamedTuple):
    """How the towers of one of transformers' dual encoders are called.

    model: its class; modalities: of the first tower and of the text tower; modules: those that own each tower's parameters;
    first_token_encoder: the encoder of which only the first token is used, "" for none.
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
"""model_type -> how its towers are called."""


def load(place: str) -> Backbone:
    """A local directory, or a hub name (through huggingface_hub's cache; offline machines need it there). Raises ModelError
    naming what is missing; custom code of a checkpoint is never run."""
    _silence_transformers()
    directory = Path(place).expanduser()
    if not directory.is_dir():
        if place.startswith((".", "/", "~")):
            raise ModelError(f"hf:{place}: no such directory")
        directory = _snapshot(place)
    require_file(directory, ("config.json",), "configuration", "hf")
    refuse_custom_code(directory, "hf")
    if (directory / "adapter_config.json").is_file():
        raise ModelError(
            f"hf:{place}: adapter_config.json lies beside the weights, and transformers would apply that adapter to them: if they "
            "are merged, remove adapter_config.json and adapter_model.safetensors; if not, merge them first"
        )
    require_file(directory, WEIGHTS, "weights file", "hf")
    kind = _supported_type(directory)
    if kind in DUAL_ENCODERS:
        require_file(directory, PREPROCESSING_FILES, "preprocessing", "hf")
    require_file(directory, TOKENIZER_FILES, "tokenizer", "hf")
    try:
        return _backbone(directory, weights=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as e:
        raise ModelError(f"hf:{place}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e


def rebuild(directory: Path) -> Backbone:
    """From a backbone's directory in an artifact; weights uninitialised."""
    _silence_transformers()
    refuse_custom_code(directory, "hf")
    return _backbone(directory, weights=False)


def _silence_transformers() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _supported_type(directory: Path) -> str:
    """The model_type of config.json. ModelError for another dual encoder than those of DUAL_ENCODERS, and for one tower of one."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind, architectures = str(config.get("model_type")), list(config.get("architectures") or [])
    except (ValueError, AttributeError) as e:
        raise ModelError(f"hf:{directory}: config.json is not a configuration ({e})") from None
    towers = [k for k in config if k.endswith("_config") and isinstance(config[k], dict) and k != "quantization_config"]
    single = [a for a in architectures if a.endswith("ModelWithProjection")]
    if single or (len(towers) > 1 and kind not in DUAL_ENCODERS):
        raise ModelError(
            f"hf:{directory}: {(single or architectures or [kind])[0]} (model_type {kind!r}) is not supported; of transformers' dual "
            f"encoders there are {', '.join(d.model for d in DUAL_ENCODERS.values())}, and text encoders with pooling"
        )
    return kind


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(name, ignore_patterns=["*.msgpack", "*.h5", "*.onnx", "*.ot", "onnx/*", "openvino/*", "*.py"])
        )
    except Exception as e:  # the hub's client raises a dozen types
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ModelError(
            f"hf:{name}: no such directory, and the hub did not answer ({first}); download it and give its directory"
        ) from None


def _backbone(directory: Path, weights: bool) -> Backbone:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if config.model_type in DUAL_ENCODERS:
        return _dual_encoder(directory, config, weights)
    return load_text_encoder(directory, config, weights)


def _dual_encoder(directory: Path, config: Untyped, weights: bool) -> Backbone:
    import transformers

    kind: str = config.model_type
    names = DUAL_ENCODERS[kind]
    processor: Untyped = transformers.AutoProcessor.from_pretrained(directory, trust_remote_code=False)
    module: Untyped = build(getattr(transformers, names.model), directory, config, weights)
    other, text = names.modalities
    modules = {m: [n for n in owned if hasattr(module, n)] for m, owned in zip(names.modalities, names.modules, strict=True)}

    def encode_text(inputs: dict[str, Tensor]) -> Tensor:
        return module.get_text_features(**inputs).pooler_output

    def tower(modality: str, dim: int, preprocess: Untyped, encode: Callable[[dict[str, Tensor]], Tensor]) -> Tower:
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
        attention_switch(module),
        use_cpu_kernels=True,
        first_token_encoders=[getattr(module, names.first_token_encoder)] if names.first_token_encoder else [],
    )


def _other_tower(
    kind: str, module: Untyped, processor: Untyped, config: Untyped
) -> tuple[Untyped, Callable[[dict[str, Tensor]], Tensor]]:
    """(preprocessing, encode) of the tower that is not text."""
    if kind == "clap":
        preprocess = ClapPreprocess(processor.feature_extractor, fused=bool(config.audio_config.enable_fusion))
        return preprocess, lambda inputs: module.get_audio_features(**inputs).pooler_output
    return ImagePreprocess(processor.image_processor), lambda inputs: module.get_image_features(**inputs).pooler_output


def _dims(config: Untyped) -> tuple[int, int]:
    """Widths of the two towers' vectors; SigLIP's text head may have a width of its own."""
    if config.model_type == "siglip":
        width = int(config.vision_config.hidden_size)
        return width, int(getattr(config.text_config, "projection_size", None) or width)
    return int(config.projection_dim), int(config.projection_dim)


def _logit_scales(module: Untyped, forward: str, backward: str) -> list[LogitScale]:
    """CLAP has one scale a direction, the others one for both; SigLIP has a bias."""
    if hasattr(module, "logit_scale_a"):
        return [LogitScale(module.logit_scale_a, None, [forward]), LogitScale(module.logit_scale_t, None, [backward])]
    return [LogitScale(module.logit_scale, getattr(module, "logit_bias", None), [forward, backward])]
