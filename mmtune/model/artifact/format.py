"""The files of an artifact directory, and its manifest as it is read: checked before anything else of the artifact is parsed."""

from dataclasses import dataclass, field
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.errors import ModelError
from mmtune.model.layout import Layout
from mmtune.runtime.files import read_json

MANIFEST = "mmtune.json"
WEIGHTS = "weights.safetensors"
PARTS = "parts"
FORMAT = 1


@dataclass
class Manifest:
    """fingerprint of the whole; layout of the model; info: base, recipe, data, ...; files: SHA-256 of every file below `parts/`,
    empty in artifacts that were written before it was stored."""

    fingerprint: str
    layout: Layout
    info: JsonObject = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """As it is stored."""
        layout = self.layout.to_json()
        return {"format": FORMAT, "fingerprint": self.fingerprint, "layout": layout, "info": self.info, "files": self.files}


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact. ModelError for one of a newer format, and for one that lacks a key."""
    path = directory / MANIFEST
    try:
        document = read_json(path)
        if document.get("format") != FORMAT:
            raise ModelError(
                f"{directory}: artifact format {document.get('format')!r}; this mmtune reads {FORMAT}: update mmtune"
            )
        layout = Layout.from_json(document["layout"])
        return Manifest(str(document["fingerprint"]), layout, document.get("info", {}), document.get("files", {}))
    except KeyError as e:
        raise ModelError(f"{path}: the key {e} is missing; restore the file, or save the model anew") from None
    except (AttributeError, TypeError, ValueError) as e:
        raise ModelError(f"{path}: not a manifest of an artifact ({str(e).splitlines()[0]})") from None
