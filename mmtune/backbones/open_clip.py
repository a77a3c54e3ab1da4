"""open_clip checkpoints: `open_clip:NAME/TAG` (TAG may be a weights file) and `open_clip:DIR` in their local-dir layout.

A directory needs `open_clip_config.json` with model_cfg AND preprocess_cfg, weights, and, where model_cfg names an
hf_tokenizer_name, the tokenizer's files: upstream would otherwise fall back to CLIP's BPE in silence (their #1068).
"""

import json
import logging
import random
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.backbones.checkpoint_files import read_files
from mmtune.errors import ModelError

CONFIG = "open_clip_config.json"
BPE_VOCABULARY = 49408
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


def load(place: str) -> Backbone:
    """A local-dir directory, or NAME/TAG as in open_clip.list_pretrained()."""
    directory = Path(place).expanduser()
    if (directory / CONFIG).is_file() or directory.is_dir() or place.startswith((".", "/", "~")):
        return _from_directory(directory)
    name, _, tag = place.partition("/")
    if not tag:
        raise ModelError(f"open_clip:{place}: name a checkpoint too: open_clip:NAME/TAG, or a directory in local-dir layout")
    return _from_name(name, tag)


def _from_directory(directory: Path) -> Backbone:
    config = _checked_config(directory)
    if not [f for p in ("*.safetensors", "*.bin", "*.pth") for f in directory.glob(p)]:
        raise ModelError(
            f"open_clip:{directory}: the weights file is missing: no open_clip_model.safetensors (*.pt is not looked at)"
        )
    module = _create(f"local-dir:{directory}", load_weights=True)
    return _backbone(module, _files(directory, config))


def _checked_config(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).is_file():
        raise ModelError(f"open_clip:{directory}: the configuration is missing: no {CONFIG} in that directory")
    config = json.loads((directory / CONFIG).read_text())
    for key in ("model_cfg", "preprocess_cfg"):
        if not config.get(key):
            raise ModelError(f"open_clip:{directory}: {CONFIG} has no {key}: the checkpoint's own preprocessing is part of it")
    text = config["model_cfg"].get("text_cfg", {})
    if text.get("hf_tokenizer_name"):
        if not any((directory / f).is_file() for f in TOKENIZER_FILES):
            raise ModelError(
                f"open_clip:{directory}: the tokenizer is missing: no {' or '.join(TOKENIZER_FILES)} in that directory"
            )
    elif text.get("vocab_size", BPE_VOCABULARY) != BPE_VOCABULARY:
        raise ModelError(
            f"open_clip:{directory}: the tokenizer is missing: vocab_size {text['vocab_size']} is not CLIP's, and "
            f"model_cfg.text_cfg names no hf_tokenizer_name; put its tokenizer.json there and name it"
        )
    return config


def _files(directory: Path, config: dict[str, Any]) -> dict[str, bytes]:
    """The configuration and the tokenizer's files, without weights."""
    kept = {CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()}
    for path in sorted(directory.iterdir()):
        if path.name in (
            *TOKENIZER_FILES,
            "merges.txt",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "added_tokens.json",
        ):
            kept[path.name] = path.read_bytes()
    return kept


def _from_name(name: str, tag: str) -> Backbone:
    import tempfile

    import open_clip

    try:
        module = _create(name, pretrained=tag, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as e:  # upstream raises RuntimeError, FileNotFoundError and its hub client's own
        raise ModelError(f"open_clip:{name}/{tag}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from None
    model_cfg = open_clip.get_model_config(name.replace("/", "-"))
    if not isinstance(tokenizer, open_clip.SimpleTokenizer) and not model_cfg["text_cfg"].get("hf_tokenizer_name"):
        model_cfg["text_cfg"]["hf_tokenizer_name"] = "local"
    config = {"model_cfg": model_cfg, "preprocess_cfg": _jsonable(module.visual.preprocess_cfg)}
    with tempfile.TemporaryDirectory() as tmp:
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(tmp)
        files = read_files(Path(tmp))
    return _backbone(module, files | {CONFIG: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()}, tokenizer)


def _jsonable(cfg: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in cfg.items()}


def rebuild(directory: Path) -> Backbone:
    """From an artifact's part directory; weights uninitialised."""
    _checked_config(directory)
    return _backbone(_create(f"local-dir:{directory}", load_weights=False), read_files(directory))


def _create(name: str, **options: Any) -> Any:
    import open_clip

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return open_clip.create_model(name, precision="fp32", **options).eval()
    except (OSError, RuntimeError, ValueError, KeyError) as e:
        raise ModelError(f"open_clip:{name}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e
    finally:
        logging.disable(previous)


def _backbone(module: Any, files: dict[str, bytes], tokenizer: Any = None) -> Backbone:
    config = json.loads(files[CONFIG])
    if tokenizer is None:
        tokenizer = _tokenizer(files)
    dim = int(config["model_cfg"]["embed_dim"])
    custom = hasattr(module, "text")
    words = [module.text] if custom else [module.transformer, module.token_embedding, module.ln_final, _Loose(module)]
    towers = {
        "image": Tower("image", dim, Picture(config["preprocess_cfg"]), lambda x: module.encode_image(**x), [module.visual]),
        "text": Tower("text", dim, Tokens(tokenizer), lambda x: module.encode_text(**x), words),
    }
    scale = LogitScale(module.logit_scale, getattr(module, "logit_bias", None), ["image->text", "text->image"])

    def drop(modality: str) -> None:
        if modality == "image":
            module.visual = nn.Identity()
        elif custom:
            module.text = nn.Identity()
        else:
            for name in ("transformer", "token_embedding", "ln_final"):
                setattr(module, name, nn.Identity())
            module.text_projection = module.positional_embedding = None

    return Backbone("open_clip", module, towers, [scale], files, drop, use_cpu_kernels=True)


class _Loose(nn.Module):
    """The text tower's parameters that upstream keeps on the model itself."""

    def __init__(self, module: Any):
        super().__init__()
        self.positional_embedding, self.text_projection = module.positional_embedding, module.text_projection


def _tokenizer(files: dict[str, bytes]) -> Any:
    import tempfile

    import open_clip

    with tempfile.TemporaryDirectory() as tmp:
        for name, data in files.items():
            (Path(tmp) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(tmp) / name).write_bytes(data)
        return open_clip.get_tokenizer(f"local-dir:{tmp}")


class Picture:
    """open_clip's inference transform of a preprocess_cfg on one RGB picture -> {"image": [3, H, W]}."""

    def __init__(self, cfg: dict[str, Any]):
        from open_clip.transform import PreprocessCfg, image_transform_v2

        known = {f.name for f in fields(PreprocessCfg)}
        options = PreprocessCfg(**{k: v for k, v in cfg.items() if k in known})
        self.transform = image_transform_v2(options, is_train=False)
        self.input_size = float(options.size if isinstance(options.size, int) else max(options.size))

    def __call__(self, signal: Any, rng: random.Random | None = None) -> dict[str, Tensor]:
        return {"image": self.transform(signal)}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"image": torch.stack([i["image"] for i in items])}


class Tokens:
    """open_clip's tokenizer on one text -> {"text": [context_length]}."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        return {"text": self.tokenizer([signal])[0]}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"text": torch.stack([i["text"] for i in items])}
