"""Load open_clip checkpoints: `open_clip:NAME/TAG` (TAG may be a weights file), `open_clip:hf-hub:ORG/NAME`, and `open_clip:DIR`
(open_clip's local-dir layout). Of CoCa models, the image and the text tower are used.

A directory must contain `open_clip_config.json`, with both `model_cfg` and `preprocess_cfg`, and the weights. If `model_cfg`
has an `hf_tokenizer_name`, the directory must contain the tokenizer's files, too: without them, open_clip would silently use
CLIP's tokenizer instead (open_clip issue 1068). For a checkpoint of the hub without them, those of `hf_tokenizer_name` are read, as
open_clip does.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mmtune.backbones import Backbone, LogitScale, Tower
from mmtune.backbones.checkpoint_files import Untyped, read_files, refuse_custom_code, require_file
from mmtune.backbones.hf_snapshot import checkpoint_directory
from mmtune.backbones.open_clip_image_preprocess import OpenClipImagePreprocess
from mmtune.backbones.open_clip_tokenizer import OpenClipTokenize, tokenizer_from_files
from mmtune.contracts import JsonObject
from mmtune.errors import ModelError, first_line

if TYPE_CHECKING:
    from open_clip import CLIP, CustomTextCLIP

CONFIG = "open_clip_config.json"
TEXT_CONFIG = "hf_text_config/config.json"
"""File of an artifact with the configuration of a text tower of transformers."""
CLIP_VOCABULARY = 49408  # vocabulary size of CLIP's own tokenizer
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")
KEPT_FILES = (*TOKENIZER_FILES, "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def load(checkpoint: str) -> Backbone:
    """Load a checkpoint from a directory in local-dir layout, or by NAME/TAG as listed by `open_clip.list_pretrained()`.

    Raises ModelError if a file is missing or open_clip cannot load the checkpoint.
    """
    if checkpoint.startswith("hf-hub:"):
        return _from_directory(checkpoint_directory(checkpoint.removeprefix("hf-hub:"), "open_clip"), of_hub=True)
    directory = Path(checkpoint).expanduser()
    if (directory / CONFIG).is_file() or directory.is_dir() or checkpoint.startswith((".", "/", "~")):
        return _from_directory(directory)
    name, _, tag = checkpoint.partition("/")
    if not tag:
        raise ModelError(
            f"open_clip:{checkpoint}: the tag is missing: write open_clip:NAME/TAG, or give a directory in local-dir layout"
        )
    return _from_name(name, tag)


def rebuild(directory: Path) -> Backbone:
    """Build the backbone with uninitialised weights from its files in an artifact."""
    config, files = _checked_config(directory), read_files(directory)
    if TEXT_CONFIG not in files:
        return _backbone(_create(f"local-dir:{directory}", load_weights=False), files)
    config["model_cfg"]["text_cfg"] |= {"hf_model_name": str((directory / TEXT_CONFIG).parent), "hf_model_pretrained": False}
    with tempfile.TemporaryDirectory() as tmp:  # open_clip reads the place of the text tower's configuration from this file
        (Path(tmp) / CONFIG).write_bytes(_json_bytes(config))
        return _backbone(_create(f"local-dir:{tmp}", load_weights=False, pretrained_text=False), files)


def _from_directory(directory: Path, of_hub: bool = False) -> Backbone:
    config = _checked_config(directory, of_hub)
    if not [f for p in ("*.safetensors", "*.bin", "*.pth") for f in directory.glob(p)]:
        raise ModelError(
            f"open_clip:{directory}: the weights file is missing: no open_clip_model.safetensors in that directory (open_clip "
            "does not read *.pt from a directory)"
        )
    files = _kept_files(directory)
    if (name := config["model_cfg"].get("text_cfg", {}).get("hf_tokenizer_name")) and not files.keys() & set(TOKENIZER_FILES):
        files |= _tokenizer_files(name)
    module = _create(f"local-dir:{directory}", load_weights=True)
    return _backbone(module, files | _text_config(module, config) | {CONFIG: _json_bytes(config)})


def _kept_files(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(directory.iterdir()) if p.name in KEPT_FILES}


def _tokenizer_files(name: str) -> dict[str, bytes]:
    """Return the files of the tokenizer `name`, a directory or a checkpoint of the hub, as they are there."""
    directory = checkpoint_directory(name, "open_clip", only=KEPT_FILES)
    refuse_custom_code(directory, "open_clip")
    require_file(directory, TOKENIZER_FILES, "tokenizer", "open_clip")
    return _kept_files(directory)


def _text_config(module: "CLIP | CustomTextCLIP", config: JsonObject) -> dict[str, bytes]:
    """Return the configuration of a transformers text tower as a file, and refer to it in `config`, in place.

    open_clip's own configuration only names the checkpoint that the text tower was started from.
    """
    text = config["model_cfg"].get("text_cfg", {})
    if not text.get("hf_model_name"):
        return {}
    text |= {"hf_model_name": str(Path(TEXT_CONFIG).parent), "hf_model_pretrained": False}
    if text.get("hf_tokenizer_name"):
        text["hf_tokenizer_name"] = "local"  # its files are stored, too
    values = json.loads(module.text.config.to_json_string())
    return {TEXT_CONFIG: _json_bytes({k: v for k, v in values.items() if k not in ("_name_or_path", "transformers_version")})}


def _checked_config(directory: Path, of_hub: bool = False) -> JsonObject:
    """Read open_clip_config.json and check that preprocessing and tokenizer are complete. Raises ModelError if they are not.

    of_hub: the tokenizer that `hf_tokenizer_name` names may be elsewhere
    """
    if not (directory / CONFIG).is_file():
        raise ModelError(f"open_clip:{directory}: the configuration is missing: no {CONFIG} in that directory")
    refuse_custom_code(directory, "open_clip")
    try:
        config: JsonObject = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except ValueError as e:
        raise ModelError(f"open_clip:{directory}: {CONFIG} is not JSON ({e})") from None
    for key in ("model_cfg", "preprocess_cfg"):
        if not config.get(key):
            raise ModelError(
                f"open_clip:{directory}: {CONFIG} has no {key}, without which model and preprocessing cannot be built; copy "
                "the complete file from the checkpoint"
            )
    text = config["model_cfg"].get("text_cfg", {})
    if text.get("hf_tokenizer_name"):
        if not of_hub:
            require_file(directory, TOKENIZER_FILES, "tokenizer", "open_clip")
    elif text.get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY:
        raise ModelError(
            f"open_clip:{directory}: the tokenizer is missing: vocab_size {text['vocab_size']} is not that of CLIP's "
            "tokenizer, and model_cfg.text_cfg has no hf_tokenizer_name; copy the checkpoint's tokenizer.json into the "
            "directory and set hf_tokenizer_name"
        )
    return config


def _from_name(name: str, tag: str) -> Backbone:
    import open_clip

    model_config: JsonObject = open_clip.get_model_config(name.replace("/", "-")) or {}
    # Some checkpoints (`openai`, `metaclip_400m`, ...) were trained with QuickGELU although their model NAME stands for GELU.
    # open_clip would build GELU towers and only warn, so the setting of the tag takes precedence over that of the name.
    quick_gelu = bool((open_clip.get_pretrained_cfg(name, tag) or {}).get("quick_gelu")) or bool(model_config.get("quick_gelu"))
    try:
        module = _create(name, pretrained=tag, require_pretrained=True, force_quick_gelu=quick_gelu)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as e:  # open_clip raises RuntimeError, FileNotFoundError and the exceptions of its hub client
        raise ModelError(f"open_clip:{name}/{tag}: {first_line(e)}") from None
    if quick_gelu:
        model_config["quick_gelu"] = True
    preprocessing = {k: list(v) if isinstance(v, tuple) else v for k, v in module.visual.preprocess_cfg.items()}
    if tokenizer_name := model_config["text_cfg"].get("hf_tokenizer_name"):
        files = _tokenizer_files(tokenizer_name)  # as they are: what a tokenizer saves differs between versions of transformers
    else:
        files = _saved_files(tokenizer)
        if not isinstance(tokenizer, open_clip.SimpleTokenizer):
            model_config["text_cfg"]["hf_tokenizer_name"] = "local"
    config = {"model_cfg": model_config, "preprocess_cfg": preprocessing}
    return _backbone(module, files | _text_config(module, config) | {CONFIG: _json_bytes(config)}, tokenizer)


def _saved_files(tokenizer: Untyped) -> dict[str, bytes]:
    """Return the files that a tokenizer saves; none for CLIP's own."""
    with tempfile.TemporaryDirectory() as tmp:
        if hasattr(tokenizer, "save_pretrained"):
            tokenizer.save_pretrained(tmp)
        return read_files(Path(tmp))


def _json_bytes(config: JsonObject) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _create(name: str, **options: object) -> "CLIP | CustomTextCLIP":
    """Create an open_clip model in float32 and eval mode, with open_clip's log messages and warnings suppressed.

    name: a model name, or "local-dir:" and a directory
    options: further arguments of `open_clip.create_model`

    Raises ModelError if open_clip fails.
    """
    import open_clip

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return open_clip.create_model(name, precision="fp32", **options).eval()
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as e:
        raise ModelError(f"open_clip:{name}: {first_line(e)}") from e
    finally:
        logging.disable(previous)


def _backbone(
    module: "CLIP | CustomTextCLIP", files: Mapping[str, bytes], tokenizer: Callable[[list[str]], Tensor] | None = None
) -> Backbone:
    """Build the Backbone of an open_clip module; without `tokenizer`, it is read from `files`."""
    config = json.loads(files[CONFIG])
    dim = int(config["model_cfg"]["embed_dim"])
    if hasattr(module, "text_decoder"):  # of CoCa; it writes captions
        module.text_decoder = nn.Identity()
    custom = hasattr(module, "text")  # CustomTextCLIP has its text tower in one attribute; CLIP spreads it over several
    text = [module.text] if custom else [module.transformer, module.token_embedding, module.ln_final, _TextParameters(module)]
    image_preprocess = OpenClipImagePreprocess(config["preprocess_cfg"])
    tokenize = OpenClipTokenize(tokenizer or tokenizer_from_files(files))
    towers = {
        "image": Tower(
            "image", dim, image_preprocess, lambda x: module.encode_image(x["image"], normalize=False), [module.visual]
        ),
        "text": Tower("text", dim, tokenize, lambda x: module.encode_text(x["text"], normalize=False), text),
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
    """The parameters of the text tower that open_clip's CLIP stores in the model itself, outside of any submodule."""

    def __init__(self, module: "CLIP"):
        super().__init__()
        self.positional_embedding, self.text_projection = module.positional_embedding, module.text_projection
