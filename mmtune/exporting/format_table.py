"""The table of export formats, and the interface that each of them implements."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmtune.errors import RecipeError
from mmtune.runtime import plugins

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


@dataclass(frozen=True)
class ExportRequest:
    """What the user asks for.

    source: the directory that the model was loaded from, or another MODEL string
    quantize: "int8" stores the weights as 8-bit integers; None keeps them as they are
    mel: "inside" puts the computation of spectrograms into exported graphs, whose input is then plain samples; "outside" leaves
        it to the caller
    signals: {modality: three decoded signals}, by which graphs are recorded and exports are checked
    """

    source: str = ""
    quantize: str | None = None
    mel: str = "outside"
    signals: dict[str, list[object]] = field(default_factory=dict)


@dataclass
class Written:
    """What a format wrote.

    towers: {modality: file or folder, relative to the output directory}
    left_out: {modality: why the format cannot hold its tower}
    notes: what the format does not hold, or what a user of the files has to do, one sentence each
    usage: Python code that embeds with the real library, for the README of the export; "DIR" stands for the directory
    model: the MODEL string that loads the export in mmtune, with "DIR" for the directory; None if mmtune does not read it
    """

    towers: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    usage: str = ""
    model: str | None = None


class ExportFormat(Protocol):
    """A format: writes a model, and opens what it wrote.

    quantizes: whether `ExportRequest.quantize` is supported
    tolerance: largest difference of a component of a vector between model and export
    """

    quantizes: bool
    tolerance: float

    def write(self, model: "Model", directory: Path, request: ExportRequest) -> Written:
        """Write the model into an empty directory. Raises ModelError if the format can hold none of its towers."""
        ...

    def reopen(self, model: "Model", directory: Path, written: Written) -> "Model | None":
        """Return a model that embeds with what was written; None if that is not possible without other files."""
        ...


TABLE: dict[str, type | str] = {
    "hf": "mmtune.exporting.hf_folder:HfFolder",
    "open_clip": "mmtune.exporting.open_clip_folder:OpenClipFolder",
    "sentence-transformers": "mmtune.exporting.st_folder:SentenceTransformersFolder",
    "peft": "mmtune.exporting.peft_folder:PeftFolder",
    "onnx": "mmtune.exporting.onnx_graph:OnnxGraph",
    "openvino": "mmtune.exporting.openvino_graph:OpenVinoGraph",
    "torchscript": "mmtune.exporting.torchscript_graph:TorchScriptGraph",
}
"""Name of each format -> the class that implements `ExportFormat`, or "package.module:Class"."""


def register_format(name: str, target: type | str) -> None:
    """Register an export format for `mmtune export --to NAME`.

    target: a class that implements `ExportFormat`, or "package.module:Class"
    """
    plugins.register(TABLE, name, target, "export format")


def export_format(name: str) -> ExportFormat:
    """Create the format of that name. Raises RecipeError if there is none."""
    cls: Callable[[], ExportFormat] = plugins.resolve(TABLE, name, "export format", key="--to", error=RecipeError)
    return cls()
