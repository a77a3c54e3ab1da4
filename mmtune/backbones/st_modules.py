"""Read the files that sentence-transformers adds to a checkpoint: modules.json, prompts, poolings, Dense layers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmtune.backbones.hf_dual_encoder_table import DUAL_ENCODERS, pooled_features
from mmtune.contracts import JsonObject
from mmtune.errors import ModelError
from mmtune.recipe.prompts_block import DEFAULT, QUERY

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
"""Names of the file with the settings of the Transformer module; the first one that exists is read."""
AFTER_TRANSFORMER = ("Pooling", "Dense", "Normalize", "LayerNorm", "Dropout")
"""Kinds of modules that may follow the Transformer module."""
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""Names under which sentence-transformers looks for the prompt of documents, in this order."""


@dataclass(frozen=True)
class StModule:
    """One module of modules.json.

    kind: class name, e.g. "Transformer", "Pooling", "Dense"
    path: its directory inside the checkpoint; "" is the checkpoint itself
    """

    kind: str
    path: str


@dataclass(frozen=True)
class TransformerSettings:
    """Settings of the Transformer module.

    max_length: limit of a text in tokens; None means the tokenizer's own limit
    lower_case: whether texts are lower-cased before they are tokenized
    files: the file that the settings were read from, {path inside the checkpoint: content}
    """

    max_length: int | None = None
    lower_case: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


def read_json(directory: Path, name: str, what: type) -> JsonObject:
    """Read a JSON file of a checkpoint. Raises ModelError if it is missing, damaged, or not of the type `what`."""
    try:
        document: JsonObject = json.loads((directory / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"st:{directory}: {name} is missing; copy it from the checkpoint") from None
    except (OSError, ValueError) as e:
        raise ModelError(f"st:{directory}: {name} is not JSON ({e})") from None
    if not isinstance(document, what):
        raise ModelError(f"st:{directory}: {name} must contain a JSON {'list' if what is list else 'object'}")
    return document


def read_modules(directory: Path) -> list[StModule]:
    """Read modules.json. Raises ModelError if an entry is malformed, or if its path leaves the checkpoint."""
    modules = []
    for entry in read_json(directory, MODULES, list):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
            raise ModelError(f"st:{directory}: {MODULES}: an entry without a type")
        path = str(entry.get("path") or "")
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ModelError(f"st:{directory}: {MODULES}: the path {path!r} leaves the checkpoint")
        modules.append(StModule(entry["type"].rpartition(".")[2], path))
    return modules


def is_dual_encoder(directory: Path, first: StModule) -> bool:
    """Whether the first module holds a dual encoder of transformers whose `get_*_features` methods it calls.

    Before version 6 of sentence-transformers, that is CLIP; since then the file of its settings names the methods.
    """
    if first.kind not in ("CLIPModel", "Transformer") or not (directory / first.path / "config.json").is_file():
        return False
    kind = read_json(directory / first.path, "config.json", dict).get("model_type")
    names = DUAL_ENCODERS.get(str(kind))
    settings = directory / first.path / TRANSFORMER_SETTINGS[0]
    methods = read_json(directory / first.path, settings.name, dict).get("modality_config") if settings.is_file() else None
    if methods is None or names is None:
        return kind == "clip"
    called = {m: (c.get("method"), c.get("method_output_name")) for m, c in methods.items() if isinstance(c, Mapping)}
    return names.features is pooled_features and called == {m: (f"get_{m}_features", "pooler_output") for m in names.modalities}


def processing_limit(directory: Path, first: StModule) -> int | None:
    """Return the token limit by which a dual encoder's processor is called; None if the settings have none.

    Raises ModelError for arguments of the processor that would give other inputs than mmtune's.
    """
    settings = directory / first.path / TRANSFORMER_SETTINGS[0]
    given = read_json(directory / first.path, settings.name, dict).get("processing_kwargs") if settings.is_file() else None
    arguments = dict((given or {}).get("text") or {})
    limit = arguments.pop("max_length", None)
    unknown = [k for k in (given or {}) if k != "text"] + [k for k in arguments if k not in ("truncation", "padding")]
    if unknown:
        raise ModelError(f"st:{directory}: {settings.name}: processing_kwargs with {unknown[0]} is not supported")
    return None if limit is None else int(limit)


def adds_nothing(directory: Path) -> bool:
    """Whether the family `hf` loads this checkpoint right without reading modules.json.

    That is so if there is no modules.json, or if it lists no more than an AutoModel, its pooling and Normalize, without prompts
    and without lower-casing, or a dual encoder.
    """
    if not (directory / MODULES).is_file():
        return True
    modules = read_modules(directory)
    kinds = [m.kind for m in modules]
    if not modules or modules[0].path:
        return False
    if is_dual_encoder(directory, modules[0]):
        plain = set(kinds[1:]) <= {"Normalize"} and processing_limit(directory, modules[0]) is None
        return plain and not read_prompts(directory)
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]) or modules[1].path != "1_Pooling":
        return False
    return not read_transformer_settings(directory, "").lower_case and not read_prompts(directory)


def read_transformer_settings(directory: Path, path: str) -> TransformerSettings:
    """Read the settings of the Transformer module in the directory `path` of a checkpoint.

    Raises ModelError for settings that would give other embeddings here: another task, or inputs that are not texts.
    """
    name = next((n for n in TRANSFORMER_SETTINGS if (directory / path / n).is_file()), None)
    if name is None:
        return TransformerSettings()
    document = read_json(directory / path, name, dict)
    task = document.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ModelError(f"st:{directory}: {name}: transformer_task {task!r} is not supported; supported: feature-extraction")
    modes = {"text": document.get("modality_config", {}).get("text")}
    if document.get("modality_config") not in (None, modes) or (modes["text"] or {}).get("method", "forward") != "forward":
        others = ", ".join(document["modality_config"])
        raise ModelError(f"st:{directory}: {name}: modality_config with {others} is not supported; supported: text alone")
    relative = str(Path(path) / name)
    return TransformerSettings(
        document.get("max_seq_length"), bool(document.get("do_lower_case")), {relative: (directory / relative).read_bytes()}
    )


def read_prompts(directory: Path) -> dict[str, list[str]]:
    """Read the prompts of a checkpoint as templates, {role: [template]}; {} if it has none.

    The role "default" gets the prompt of `default_prompt_name`, else that of documents; the role "query" the prompt "query",
    and every other prompt a role of its name. Raises ModelError if a prompt contains "{}" or the default prompt is missing.
    """
    if not (directory / SETTINGS).is_file():
        return {}
    document = read_json(directory, SETTINGS, dict)
    prompts = {str(k): str(v) for k, v in (document.get("prompts") or {}).items() if v}
    default = document.get("default_prompt_name")
    if default is not None and default not in (document.get("prompts") or {}) and default not in (QUERY, "document"):
        raise ModelError(f"st:{directory}: {SETTINGS}: default_prompt_name {default!r} is not one of its prompts")
    if bad := [k for k, v in prompts.items() if "{}" in v]:
        raise ModelError(f"st:{directory}: {SETTINGS}: the prompt {bad[0]!r} contains {{}}, which mmtune replaces by the text")
    if not prompts:
        return {}
    chosen = default if default is not None else next((n for n in DOCUMENT_PROMPTS if n in prompts), None)
    roles = {role: [f"{prompt}{{}}"] for role, prompt in prompts.items() if role != DEFAULT}
    if chosen in prompts:
        roles[DEFAULT] = [f"{prompts[chosen]}{{}}"]
        roles.setdefault(QUERY, ["{}"])
    return roles
