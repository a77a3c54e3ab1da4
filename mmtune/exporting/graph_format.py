"""What the graph formats (ONNX, OpenVINO, TorchScript) have in common: one folder for each tower, with its graph and its files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmtune.errors import ModelError
from mmtune.exporting.format_table import ExportRequest, Written
from mmtune.exporting.tower_graph import Encode, Recording, record, runtime_model, write_tower_files
from mmtune.exporting.what_it_holds import settings_notes
from mmtune.model.dual_encoder import Model
from mmtune.runtime.files import write_json

INPUTS = "graph.json"


class GraphFormat:
    """Base class: a subclass writes one recorded tower and opens it again.

    name: of the format, for messages
    file: file name of the graph
    """

    quantizes = False
    tolerance = 1e-4
    name = ""
    file = ""
    usage = ""

    def write_graph(self, recording: Recording, path: Path, quantize: str | None) -> None:
        """Write the graph of one tower to `path`."""
        raise NotImplementedError

    def open_graph(self, path: Path, names: list[str]) -> Encode:
        """Return the function from input tensors to vectors that a written graph computes."""
        raise NotImplementedError

    def write(self, model: Model, directory: Path, request: ExportRequest) -> Written:
        """Write every tower whose signals are known. Raises ModelError if a tower cannot be recorded."""
        written = Written({}, notes=settings_notes(model, dim=True), usage=self.usage)
        for m in model.towers:
            if m not in request.signals:
                written.left_out[m] = "there is no example to record it by; give --data with such values"
                continue
            recording = record(model, m, request.signals[m], request.mel == "inside")
            folder = directory / m
            folder.mkdir(parents=True)
            try:
                with torch.no_grad():
                    self.write_graph(recording, folder / self.file, request.quantize)
            except ModelError:
                raise
            except Exception as e:  # exporters raise many unrelated types
                first = (str(e).strip() or type(e).__name__).split("\n", 1)[0]
                raise ModelError(f"export to {self.name}: the {m} tower cannot be recorded ({first[:300]})") from e
            write_tower_files(model, m, folder)
            write_json(folder / INPUTS, _description(recording))
            written.towers[m] = f"{m}/{self.file}"
            if recording.graph.features is not None:
                written.notes.append(f"the graph of {m} computes the spectrogram itself; its input is samples of one window")
            elif hasattr(model.towers[m].preprocess, "windows"):
                written.notes.append(
                    f"the graph of {m} takes {', '.join(recording.names)}; the spectrogram is computed outside"
                )
        if not written.towers:
            raise ModelError(f"export to {self.name}: {'; '.join(f'{m}: {why}' for m, why in written.left_out.items())}")
        return written

    def reopen(self, model: Model, directory: Path, written: Written) -> Model | None:
        """Return a model whose towers are the graphs."""
        from mmtune.runtime.files import read_json

        names = {m: [i["name"] for i in read_json(directory / m / INPUTS)["inputs"]] for m in written.towers}
        encoders = {m: self.open_graph(directory / path, names[m]) for m, path in written.towers.items()}
        return runtime_model(model, encoders, [m for m in names if names[m] == ["samples"]])


def _description(recording: Recording) -> dict[str, object]:
    first = recording.batches[0]
    inputs = []
    for name, axes in zip(recording.names, recording.dynamic_axes(), strict=True):
        shape = [None if i in axes else n for i, n in enumerate(first[name].shape)]
        inputs.append({"name": name, "shape": shape, "type": str(first[name].dtype).removeprefix("torch.")})
    return {"inputs": inputs, "output": {"name": "vector", "shape": [None, recording.graph.dim], "type": "float32"}}


def numpy_encode(run: Callable[[dict[str, np.ndarray]], np.ndarray]) -> Encode:
    """Turn a function from {name: array} to an array into one from and to tensors."""

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(run({k: v.cpu().numpy() for k, v in inputs.items()}))

    return encode
