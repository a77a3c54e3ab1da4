"""open_clip checkpoints: `open_clip:NAME/TAG` (TAG may be a weights file) and `open_clip:DIR` in their local-dir layout.

A directory needs `open_clip_config.json` with model_cfg AND preprocess_cfg, weights, and, where model_cfg names an
hf_tokenizer_name, the tokenizer's files: upstream would otherwise fall back to CLIP's BPE in silence (their #1068).
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_files, refuse_custom_code
from mmtune.backbones.open_clip_image_preprocess import OpenClipImagePreprocess
from mmtune.backbones.open_clip_tokenizer import OpenClipTokenize, tokenizer_from_files
from mmtune.contracts import JsonObject
from mmtune.errors import ModelError

CONFIG = "open_clip_config.json"
CLIP_VOCABULARY = 49408
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
KEPT_FILES = (*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load(place: str) -> Backbone:
    """A directory in local-dir layout, or NAME/TAG as in open_clip.list_pretrained(). Raises ModelError."""
    directory = Path(place).expanduser()
    if (directory / CONFIG).is_file() or directory.is_dir() or place.startswith((".", "/", "~")):
        return _from_directory(directory)
    name, _, tag = place.partition("/")
    if not tag:
        raise ModelError(f"open_clip:{place}: name a checkpoint too: open_clip:NAME/TAG, or a directory in local-dir layout")
    return _from_name(name, tag)


def rebuild(directory: Path) -> Backbone:
    """From a backbone's directory in an artifact; weights uninitialised."""
    _checked_config(directory)
    return _backbone(_create(f"local-dir:{directory}", load_weights=False), read_files(directory))


def _from_directory(directory: Path) -> Backbone:
    config = _checked_config(directory)
    if not [f for p in ("*.safetensors", "*.bin", "*.pth") for f in directory.glob(p)]:
        raise ModelError(
            f"open_clip:{directory}: the weights file is missing: no open_clip_model.safetensors (*.pt is not looked at)"
        )
    files = {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.name in KEPT_FILES}
    return _backbone(_create(f"local-dir:{directory}", load_weights=True), files | {CONFIG: _json_bytes(config)})


def _checked_config(directory: Path) -> JsonObject:
    """The configuration of a directory whose preprocessing and tokenizer are complete; else ModelError."""
    if not (directory / CONFIG).is_file():
        raise ModelError(f"open_clip:{directory}: the configuration is missing: no {CONFIG} in that directory")
    refuse_custom_code(directory, "open_clip")
    try:
        config: JsonObject = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except ValueError as e:
        raise ModelError(f"open_clip:{directory}: {CONFIG} is not JSON ({e})") from None
    for key in ("model_cfg", "preprocess_cfg"):
        if not config.get(key):
            raise ModelError(f"open_clip:{directory}: {CONFIG} has no {key}: the checkpoint's own preprocessing is part of it")
    text = config["model_cfg"].get("text_cfg", {})
    if text.get("hf_tokenizer_name"):
        if not any((directory / f).is_file() for f in TOKENIZER_FILES):
            raise ModelError(
                f"open_clip:{directory}: the tokenizer is missing: no {' or '.join(TOKENIZER_FILES)} in that directory"
            )
    elif text.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY:
        raise ModelError(
            f"open_clip:{directory}: the tokenizer is missing: vocab_size {text['vocab_size']} is not CLIP's, and "
            f"model_cfg.text_cfg names no hf_tokenizer_name; put its tokenizer.json there and name it"
        )
    return config


def _from_name(name: str, tag: str) -> Backbone:
    import open_clip

    model_config: JsonObject = open_clip.get_model_config(name.replace("/", "-")) or {}
    # Checkpoints trained with QuickGELU (`openai`, `metaclip_400m`, ...) under a name without it: upstream builds GELU towers
    # and only warns. The tag knows better than the name.
    quick_gelu = bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu")) or bool(model_config.get("quick_gelu"))
    try:
        module = _create(name, pretrained=tag, require_pretrained=True, force_quick_gelu=quick_gelu)
        tokenizer: Untyped = open_clip.get_tokenizer(name)
    except Exception as e:  # upstream raises RuntimeError, FileNotFoundError and its hub client's own
        raise ModelError(f"open_clip:{name}/{tag}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from None
    if quick_gelu:
        model_config["quick_gelu"] = True
    if not isinstance(tokenizer, open_clip.SimpleTokenizer) and not model_config["text_cfg"].get("hf_tokenizer_name"):
        model_config["text_cfg"]["hf_tokenizer_name"] = "local"
    preprocessing = {k: list(v) if isinstance(v, tuple) else v for k, v in module.visual.preprocess_cfg.items()}
    with tempfile.TemporaryDirectory() as tmp:
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(tmp)
        files = read_files(Path(tmp))
    config = {"model_cfg": model_config, "preprocess_cfg": preprocessing}
    return _backbone(module, files | {CONFIG: _json_bytes(config)}, tokenizer)


def _json_bytes(config: JsonObject) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _create(name: str, **options: object) -> Untyped:
    """open_clip's module in float32 and eval mode, without its log and warnings. Raises ModelError."""
    import open_clip

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return open_clip.create_model(name, precision="fp32", **options).eval()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as e:
        raise ModelError(f"open_clip:{name}: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e
    finally:
        logging.disable(previous)


def _backbone(module: Untyped, files: Mapping[str, bytes], tokenizer: Callable[[list[str]], Tensor] | None = None) -> Backbone:
    config = json.loads(files[CONFIG])
    dim = int(config["model_cfg"]["embed_dim"])
    custom = hasattr(module, "text")  # open_clip's CustomTextCLIP: a text tower of its own
    text = [module.text] if custom else [module.transformer, module.token_embedding, module.ln_final, _TextParameters(module)]
    image_preprocess = OpenClipImagePreprocess(config["preprocess_cfg"])
    tokenize = OpenClipTokenize(tokenizer or tokenizer_from_files(files))
    towers = {
        "image": Tower("image", dim, image_preprocess, lambda x: module.encode_image(**x), [module.visual]),
        "text": Tower("text", dim, tokenize, lambda x: module.encode_text(**x), text),
    }
    scale = LogitScale(module.logit_scale, getattr(module, "logit_bias", None), ["image->text", "text->image"])

    def free_tower(modality: str) -> None:
        if modality == "image":
            module.visual = nn.Identity()
        elif custom:
            module.text = nn.Identity()
        else:
            for name in ("transformer", "token_embedding", "ln_final"):
                setattr(module, name, nn.Identity())
            module.text_projection = module.positional_embedding = None

    return Backbone("open_clip", module, towers, [scale], dict(files), free_tower, use_cpu_kernels=True)


class _TextParameters(nn.Module):
    """The text tower's parameters that upstream keeps on the model itself."""

    def __init__(self, module: Untyped):
        super().__init__()
        self.positional_embedding, self.text_projection = module.positional_embedding, module.text_projection
