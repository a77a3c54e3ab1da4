"""Transformers checkpoints: CLIPModel, SiglipModel, ClapModel (fused or not), and any text encoder with pooling.

transformers 5 returns output objects from get_*_features: `.pooler_output` is the projected vector.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.backbones import Backbone, LogitScale, Tower, read_files
from mmtune.backbones.hf_preprocess import ClapPreprocess, ImagePreprocess, TokenPreprocess
from mmtune.errors import ModelError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
DUAL = {"clip": ("image", "text"), "siglip": ("image", "text"), "clap": ("audio", "text")}


def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _need(directory: Path, names: tuple[str, ...], what: str) -> None:
    if not any((directory / n).is_file() for n in names):
        raise ModelError(
            f"hf:{directory}: the {what} is missing: no {' or '.join(names)} in that directory; copy it from the checkpoint"
        )


def load(place: str) -> Backbone:
    """A local directory, or a hub name (through huggingface_hub's cache; offline machines need it there)."""
    _quiet()
    directory = Path(place).expanduser()
    if not directory.is_dir():
        if place.startswith((".", "/", "~")):
            raise ModelError(f"hf:{place}: no such directory")
        directory = _snapshot(place)
    _need(directory, ("config.json",), "configuration")
    _need(directory, WEIGHTS, "weights file")
    kind = json.loads((directory / "config.json").read_text()).get("model_type")
    if kind in DUAL:
        _need(directory, IMAGE_FILES, "preprocessing")
    _need(directory, TOKENIZER_FILES, "tokenizer")
    try:
        return _backbone(directory, weights=True)
    except (OSError, ValueError, KeyError, RuntimeError) as e:
        raise ModelError(f"hf:{place}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e


def rebuild(directory: Path) -> Backbone:
    """From an artifact's part directory; weights uninitialised."""
    _quiet()
    return _backbone(directory, weights=False)


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.msgpack", "*.h5", "*.onnx", "*.ot", "onnx/*", "openvino/*"]))
    except Exception as e:  # the hub's client raises a dozen types
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ModelError(
            f"hf:{name}: no such directory, and the hub did not answer ({first}); download it and give its directory"
        ) from None


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory)


def _build(cls: Any, directory: Path, config: Any, weights: bool) -> nn.Module:
    """Float32 whatever the file holds: the fingerprint and the vectors must not depend on a library's default dtype."""
    if weights:
        module, info = cls.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
        missing = sorted(k for k in info["missing_keys"] if "position_ids" not in k)
        if missing:
            raise ModelError(f"hf:{directory}: {len(missing)} weights are missing from the checkpoint, first {missing[0]!r}")
    else:
        module = cls(config).float()
    return module.eval()


def _backbone(directory: Path, weights: bool) -> Backbone:
    config = _config(directory)
    if config.model_type in DUAL:
        return _dual(directory, config, weights)
    return _text_encoder(directory, config, weights)


def _dual(directory: Path, config: Any, weights: bool) -> Backbone:
    import transformers

    cls = {"clip": "CLIPModel", "siglip": "SiglipModel", "clap": "ClapModel"}[config.model_type]
    processor: Any = transformers.AutoProcessor.from_pretrained(directory)
    module: Any = _build(getattr(transformers, cls), directory, config, weights)
    signal, word = DUAL[config.model_type]
    tokens = TokenPreprocess(processor.tokenizer, config.text_config, full_length=config.model_type == "siglip")
    first: ImagePreprocess | ClapPreprocess
    if config.model_type == "clap":
        first = ClapPreprocess(processor.feature_extractor, fused=bool(config.audio_config.enable_fusion))
        names = {signal: ["audio_model", "audio_projection"], word: ["text_model", "text_projection"]}
        dim = config.projection_dim
        scales = [
            LogitScale(module.logit_scale_a, None, [f"{signal}->{word}"]),
            LogitScale(module.logit_scale_t, None, [f"{word}->{signal}"]),
        ]
        encode_first = lambda x: module.get_audio_features(**x).pooler_output  # noqa: E731
    else:
        first = ImagePreprocess(processor.image_processor)
        names = {signal: ["vision_model", "visual_projection"], word: ["text_model", "text_projection"]}
        dim = config.projection_dim if config.model_type == "clip" else config.vision_config.hidden_size
        both = [f"{signal}->{word}", f"{word}->{signal}"]
        scales = [LogitScale(module.logit_scale, getattr(module, "logit_bias", None), both)]
        encode_first = lambda x: module.get_image_features(**x).pooler_output  # noqa: E731
    encode_word = lambda x: module.get_text_features(**x).pooler_output  # noqa: E731
    if config.model_type == "siglip":  # its text head may have a width of its own
        dim = getattr(config.text_config, "projection_size", None) or dim

    def owned(modality: str) -> list[nn.Module]:
        return [getattr(module, n) for n in names[modality] if hasattr(module, n)]

    def drop(modality: str) -> None:
        for name in names[modality]:
            if hasattr(module, name):
                setattr(module, name, nn.Identity())

    towers = {
        signal: Tower(signal, dim, first, encode_first, owned(signal)),
        word: Tower(word, dim, tokens, encode_word, owned(word)),
    }
    first_token = {"clip": "vision_model", "clap": "text_model"}.get(config.model_type)
    return Backbone(
        "hf",
        module,
        towers,
        scales,
        _saved(config, processor),
        drop,
        _attention(module),
        use_cpu_kernels=True,
        first_token_encoders=[getattr(module, first_token)] if first_token else [],
    )


def _attention(module: Any) -> Callable[[str, bool], None]:
    """On a CPU in bf16 the fused attention's backward takes as long as all matrix products together (torch 2.14: 350 of
    800 ms a step of 64 pictures); the plain one does not (500 ms)."""
    usual = module.config._attn_implementation

    def select_attention(device: str, low_precision: bool) -> None:
        module.set_attn_implementation("eager" if device == "cpu" and low_precision else usual)

    return select_attention


def _saved(*things: Any) -> dict[str, bytes]:
    """The files that upstream's own save_pretrained writes, less what changes with the library's version."""
    with tempfile.TemporaryDirectory() as tmp:
        for thing in things:
            thing.save_pretrained(tmp)
        files = read_files(Path(tmp))
    for name in [n for n in files if n.endswith(".json")]:
        document = json.loads(files[name])
        if isinstance(document, dict):
            for key in ("transformers_version", "_name_or_path", "name_or_path"):
                document.pop(key, None)
            files[name] = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return files


def _text_encoder(directory: Path, config: Any, weights: bool) -> Backbone:
    """AutoModel with the pooling that sentence-transformers' files ask for (mean without them)."""
    from transformers import AutoModel, AutoTokenizer

    pooling, limit, extra = _pooling(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    module: Any = _build(AutoModel, directory, config, True) if weights else AutoModel.from_config(config).float().eval()
    tokens = TokenPreprocess(tokenizer, config, limit=limit)
    encode = _pooled(module, pooling)
    tower = Tower("text", config.hidden_size, tokens, encode, [module])
    files = _saved(config, tokenizer) | extra
    return Backbone(
        "hf",
        module,
        {"text": tower},
        [],
        files,
        select_attention=_attention(module),
        use_cpu_kernels=True,
        info={"pooling": pooling},
    )


def _pooling(directory: Path) -> tuple[str, int | None, dict[str, bytes]]:
    """(mode, max tokens, files to carry) from `1_Pooling/config.json` and `sentence_bert_config.json`, if there."""
    pooling, limit, extra = "mean", None, {}
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "max": "pooling_mode_max_tokens"}
    file = directory / "1_Pooling" / "config.json"
    if file.is_file():
        document = json.loads(file.read_text())
        chosen = [m for m, key in modes.items() if document.get(key)] or [document.get("pooling_mode", "mean")]
        if len(chosen) != 1 or chosen[0] not in modes:
            raise ModelError(f"{file}: pooling {chosen} is not supported; known: {', '.join(modes)}")
        pooling, extra["1_Pooling/config.json"] = chosen[0], file.read_bytes()
    if (directory / "2_Dense").is_dir():
        raise ModelError(f"hf:{directory}: a Dense module after pooling is not supported; fold it into the encoder first")
    file = directory / "sentence_bert_config.json"
    if file.is_file():
        limit, extra[file.name] = json.loads(file.read_text()).get("max_seq_length"), file.read_bytes()
    return pooling, limit, extra


def _pooled(module: nn.Module, pooling: str) -> Callable[[dict[str, Tensor]], Tensor]:
    def encode(inputs: dict[str, Tensor]) -> Tensor:
        hidden_BTH = module(**inputs).last_hidden_state
        if pooling == "cls":
            return hidden_BTH[:, 0]
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTH.dtype)
        if pooling == "max":
            return hidden_BTH.masked_fill(mask_BT1 == 0, float("-inf")).amax(1)
        return (hidden_BTH * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1e-9)

    return encode
