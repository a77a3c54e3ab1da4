"""Files of a checkpoint directory: what must be there, what is refused, what is read."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from mmtune.errors import ModelError

Untyped: TypeAlias = Any
"""An object of an upstream library (module, configuration, processor) whose attributes differ by architecture."""
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
"""Files in which transformers and sentence-transformers look for the names of classes in the checkpoint's own Python files."""


def read_files(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by its relative path."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def require_file(directory: Path, names: Sequence[str], what: str, family: str) -> None:
    """ModelError unless one of the files `names` is there; `what` is called missing."""
    if not any((directory / n).is_file() for n in names):
        raise ModelError(
            f"{family}:{directory}: the {what} is missing: no {' or '.join(names)} in that directory; copy it from the checkpoint"
        )


def refuse_custom_code(directory: Path, family: str) -> None:
    """ModelError where a configuration names Python code of the checkpoint (`auto_map`): it is never run, and without it the
    weights would be read into another architecture."""
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
                raise ModelError(
                    f"{family}:{directory}: {name} names code of its own ({'auto_map' if custom else kind}), and mmtune never runs "
                    "code of a checkpoint; choose one of an architecture that transformers has itself"
                )


class _Saveable(Protocol):
    def save_pretrained(self, save_directory: str, /) -> object: ...


def read_saved_files(*parts: _Saveable) -> dict[str, bytes]:
    """The files that upstream's own `save_pretrained` writes for each of `parts` (configuration, processor, tokenizer), without
    the keys that change with the library's version."""
    with tempfile.TemporaryDirectory() as tmp:
        for part in parts:
            part.save_pretrained(tmp)
        files = read_files(Path(tmp))
    for name in [n for n in files if n.endswith(".json")]:
        document = json.loads(files[name])
        if isinstance(document, dict):
            for key in ("transformers_version", "_name_or_path", "name_or_path"):
                document.pop(key, None)
            files[name] = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
    return files
