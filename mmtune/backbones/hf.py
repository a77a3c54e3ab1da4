"""Load transformers checkpoints (`hf:DIR_OR_NAME`).

Supported are the dual encoders of `hf_dual_encoder_table`, single towers of them with their projection
(`hf_projected_tower`), and single encoders of images (`hf_image_encoder`), sounds
(`hf_audio_encoder`) and texts (`hf_text_encoder`), whose outputs are pooled: `hf:CHECKPOINT?pooling=MODE`.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from mmtune import backbones
from mmtune.backbones import Backbone
from mmtune.backbones.checkpoint_files import refuse_adapter, refuse_custom_code, require_file
from mmtune.backbones.checkpoint_options import split_options
from mmtune.backbones.hf_audio_encoder import load_audio_encoder
from mmtune.backbones.hf_dual_encoder import load_dual_encoder
from mmtune.backbones.hf_dual_encoder_table import DUAL_ENCODERS
from mmtune.backbones.hf_image_encoder import load_image_encoder
from mmtune.backbones.hf_projected_tower import PROJECTED_TOWERS, load_projected_tower
from mmtune.backbones.hf_single_types import modality_of
from mmtune.backbones.hf_snapshot import checkpoint_directory, silence_transformers
from mmtune.backbones.hf_text_encoder import load_text_encoder
from mmtune.backbones.st_modules import adds_nothing
from mmtune.errors import ModelError, first_line

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
PREPROCESSING_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")


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
    refuse_adapter(directory, "hf")
    require_file(directory, ("config.json",), "configuration", "hf")
    refuse_custom_code(directory, "hf")
    require_file(directory, WEIGHTS, "weights file", "hf")
    kind = _supported_type(directory)
    projected = _projected_tower(directory)
    if projected and options:
        raise ModelError(f"hf:{checkpoint}: {projected} has a pooling and a projection of its own; remove ?pooling=")
    modality = None if kind in DUAL_ENCODERS else modality_of(kind)
    if projected:
        modality = PROJECTED_TOWERS[projected].modality
    if modality != "text":
        require_file(directory, PREPROCESSING_FILES, "preprocessing", "hf")
    if modality in (None, "text"):
        require_file(directory, TOKENIZER_FILES, "tokenizer", "hf")
    try:
        return _backbone(directory, load_weights=True, options=options)
    except ModelError:
        raise
    except Exception as e:  # transformers raises many unrelated types, and tokenizers a plain Exception
        raise ModelError(f"hf:{checkpoint}: {first_line(e)}") from e


def rebuild(directory: Path) -> Backbone:
    """Build the backbone with uninitialised weights from its files in an artifact."""
    silence_transformers()
    refuse_custom_code(directory, "hf")
    return _backbone(directory, load_weights=False, options={})


def _supported_type(directory: Path) -> str:
    """Return the `model_type` in config.json. Raises ModelError for an architecture with several towers that is not supported."""
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        kind, architectures = str(config.get("model_type")), list(config.get("architectures") or [])
    except (ValueError, AttributeError) as e:
        raise ModelError(f"hf:{directory}: config.json is not a configuration ({e})") from None
    towers = [k for k in config if k.endswith("_config") and isinstance(config[k], dict) and k != "quantization_config"]
    names = DUAL_ENCODERS.get(kind)
    if _projected_tower(directory):
        return kind
    single = [a for a in architectures if a.endswith("ModelWithProjection")]
    if "model_type" not in config and "architecture" in config:
        raise ModelError(f"hf:{directory}: this is a checkpoint of timm; write timm:{directory}")
    accepted = {names.model, *names.other_architectures} if names else set[str]()
    if names and not single and (not architectures or accepted & set(architectures)):
        return kind
    inner = max(len(towers), _number_of_parts(directory, kind))
    if names or single or inner > 1 or modality_of(kind) is None:
        raise ModelError(
            f"hf:{directory}: {(single or architectures or [kind])[0]} (model_type {kind!r}) is not supported; supported are "
            f"{', '.join(d.model for d in DUAL_ENCODERS.values())}, and single encoders of images, sounds and texts"
        )
    return kind


def _projected_tower(directory: Path) -> str:
    """Return the model class of a checkpoint if it is a single tower with its projection, else ""."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    architectures = config.get("architectures") if isinstance(config, dict) else None
    return next((a for a in architectures or [] if a in PROJECTED_TOWERS), "")


def _number_of_parts(directory: Path, kind: str) -> int:
    """Return how many configurations of inner models an architecture has. Raises ModelError if transformers does not know it."""
    import transformers

    if kind not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"hf:{directory}: transformers {transformers.__version__} has no architecture {kind!r} (model_type in config.json); "
            "install a newer transformers, or choose another checkpoint"
        )
    config = transformers.CONFIG_MAPPING[kind]
    return len(getattr(config, "sub_configs", None) or getattr(config, "sub_configs_defaults", {}))


def _backbone(directory: Path, load_weights: bool, options: Mapping[str, str]) -> Backbone:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if projected := _projected_tower(directory):
        return load_projected_tower(directory, projected, config, load_weights)
    if config.model_type in DUAL_ENCODERS:
        return load_dual_encoder(directory, config, load_weights)
    load_tower = {"image": load_image_encoder, "audio": load_audio_encoder, "text": load_text_encoder}
    return load_tower[modality_of(config.model_type) or "text"](directory, config, load_weights, options.get("pooling"))
