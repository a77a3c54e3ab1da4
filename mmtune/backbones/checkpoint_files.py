"""Check and read the files of a checkpoint directory."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from mmtune.errors import ModelError

Untyped: TypeAlias = Any
"""An object of transformers or open_clip (a module, configuration or processor) whose attributes depend on the architecture."""
CODE_FILES = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "modules.json",
)
"""Files in which a checkpoint can name classes of its own Python files for transformers or sentence-transformers to run."""


def read_files(directory: Path) -> dict[str, bytes]:
    """Read every file under `directory`, including subdirectories; the keys are relative paths."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def require_file(directory: Path, names: Sequence[str], what: str, family: str) -> None:
    """Raise ModelError if `directory` has none of the files `names`.

    what: what the files contain, for the message, e.g. "tokenizer"
    family: the model family, for the message
    """
    if not any((directory / n).is_file() for n in names):
        raise ModelError(
            f"{family}:{directory}: the {what} is missing: no {' or '.join(names)} in that directory; copy it from the "
            "checkpoint"
        )


def refuse_custom_code(directory: Path, family: str) -> None:
    """Raise ModelError if a configuration file refers to Python code of the checkpoint (e.g. by `auto_map`).

    mmtune never runs such code, and without it the weights would be loaded into another architecture.
    """
    for name in CODE_FILES:
        path = directory / name
        if not path.is_file():
            continue
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as e:
            raise ModelError(f"{family}:{directory}: {name} is not JSON ({e})") from None
        entries = document if isinstance(document, list) else [document]
        for entry in entries:
            custom = isinstance(entry, dict) and entry.get("auto_map")
            kind = entry.get("type", "") if isinstance(entry, dict) and name == "modules.json" else ""
            if custom or (kind and not str(kind).startswith("sentence_transformers.")):
                names = ", ".join(map(str, entry.get("architectures") or ())) if isinstance(entry, dict) else ""
                what = f"auto_map: {names}" if names else "auto_map"
                raise ModelError(
                    f"{family}:{directory}: {name} refers to Python code of the checkpoint ({what if custom else kind}), "
                    "and mmtune never runs code of a checkpoint; choose a checkpoint whose architecture is part of transformers"
                )


def refuse_adapter(directory: Path, family: str) -> None:
    """Raise ModelError if a checkpoint directory contains an adapter of peft, which transformers would apply to the weights.

    Whether it is already merged into them cannot be known.
    """
    if not (directory / "adapter_config.json").is_file():
        return
    if (directory / "config.json").is_file():
        raise ModelError(
            f"{family}:{directory}: the directory also contains an adapter (adapter_config.json), which transformers would apply "
            "to the weights: if it is already merged into them, remove adapter_config.json and adapter_model.safetensors; if not, "
            "merge it first"
        )
    raise ModelError(
        f"{family}:{directory}: this is an adapter of peft (adapter_config.json) without its base model; merge it "
        "(PeftModel.from_pretrained(BASE, DIR).merge_and_unload()) and save the result with BASE's preprocessing in a new directory"
    )


SOURCE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
)
"""Files of a transformers checkpoint that configuration, preprocessing and tokenizer are read from."""
VOCABULARY_FILES = ("vocab*.json", "vocab*.txt", "merges.txt", "bpe.codes", "dict*.txt")
"""Files that a tokenizer is read from only if there is no tokenizer.json."""


def read_source_files(directory: Path) -> dict[str, bytes]:
    """Read the configuration, preprocessing and tokenizer files of a transformers checkpoint as they are.

    They are stored with a model unchanged: what transformers would write differs between its versions.
    """
    patterns = SOURCE_FILES if (directory / "tokenizer.json").is_file() else (*SOURCE_FILES, *VOCABULARY_FILES)
    paths = {p for pattern in patterns for p in directory.glob(pattern) if p.is_file()}
    return {p.name: p.read_bytes() for p in sorted(paths)}


class _Saveable(Protocol):
    def save_pretrained(self, save_directory: str, /) -> object: ...


def read_saved_files(*objects: _Saveable) -> dict[str, bytes]:
    """Return the files that `save_pretrained` writes for each of `objects` (a configuration, processor or tokenizer).

    Fingerprints of the format mm1 depend on them. Keys that depend on the version or on the location of the checkpoint are removed from the JSON files, so that equal
    checkpoints give equal files.
    """
    with tempfile.TemporaryDirectory() as tmp:
        for x in objects:
            x.save_pretrained(tmp)
        files = read_files(Path(tmp))
    for name in [n for n in files if n.endswith(".json")]:
        document = json.loads(files[name])
        if isinstance(document, dict):
            for key in ("transformers_version", "_name_or_path", "name_or_path"):
                document.pop(key, None)
            files[name] = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return files
