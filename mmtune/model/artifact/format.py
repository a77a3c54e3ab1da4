"""The file names of an artifact directory, and its manifest, which is read and checked before any other file."""

from dataclasses import dataclass, field
from pathlib import Path, PurePath

from mmtune.contracts import JsonObject
from mmtune.errors import ModelError, first_line
from mmtune.model.layout import Layout
from mmtune.runtime.files import read_json
from mmtune.runtime.format_number import check_format

MANIFEST = "mmtune.json"
WEIGHTS = "weights.safetensors"
PARTS = "parts"
FITTED_HEADS = "fitted_heads"
"""Directory in a run's with the model as it was before the first step, if its heads were fitted to the training pairs."""
SEEDS_FILE = "seeds.json"
"""File in a directory of runs with several seeds, which holds no artifact itself (`mmtune train --seeds`)."""
PREDICTORS = "predictors"
"""Directory with stored predictors (`mmtune predict --save`); not part of the fingerprint."""
FORMAT = 1
SYSTEM_FILES = (".DS_Store", "Thumbs.db", "desktop.ini")


@dataclass
class Manifest:
    """The manifest of an artifact (mmtune.json).

    fingerprint: fingerprint of the model
    layout: layout of the model
    info: how the model was made: base, recipe, data, ...
    files: SHA-256 of each file under `parts/`; empty in artifacts of earlier versions, which did not store it
    """

    fingerprint: str
    layout: Layout
    info: JsonObject = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Convert the manifest to the JSON object that is stored."""
        layout = self.layout.to_json()
        return {"format": FORMAT, "fingerprint": self.fingerprint, "layout": layout, "info": self.info, "files": self.files}


def read_manifest(directory: Path) -> Manifest:
    """Read the manifest of an artifact. Raises ModelError if its format is not supported or a key is missing."""
    path = directory / MANIFEST
    try:
        document = read_json(path)
        check_format(document.get("format"), FORMAT, path, ModelError)
        layout = Layout.from_json(document["layout"])
        info, files = document.get("info", {}), document.get("files", {})
        if not isinstance(info, dict) or not isinstance(files, dict):
            raise TypeError("info and files must be objects")
        return Manifest(str(document["fingerprint"]), layout, info, files)
    except KeyError as e:
        raise ModelError(f"{path}: the key {e} is missing; restore the file from its source, or save the model again") from None
    except (AttributeError, TypeError, ValueError) as e:
        raise ModelError(f"{path}: not a valid artifact manifest ({first_line(e)})") from None


def is_system_file(name: str) -> bool:
    """Whether a file with this name is written by an operating system into directories. Such files are ignored in artifacts."""
    base = PurePath(name).name
    return base in SYSTEM_FILES or base.startswith("._")
