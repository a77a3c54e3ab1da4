"""Export to TorchScript: `torch.jit.load("DIR/MODALITY/model.pt")`, in Python or C++. Recorded by tracing."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from mmtune.exporting.graph_format import GraphFormat
from mmtune.exporting.tower_graph import Encode, Recording


class TorchScriptGraph(GraphFormat):
    """Writes one traced module for each tower."""

    tolerance = 1e-5
    name, file = "torchscript", "model.pt"
    usage = 'import torch\nmodule = torch.jit.load("DIR/MODALITY/model.pt")\nvectors = module(*inputs)  # graph.json lists the inputs'

    def write_graph(self, recording: Recording, path: Path, quantize: str | None) -> None:
        inputs = tuple(recording.batches[0][n] for n in recording.names)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(recording.graph, inputs, check_trace=False).save(str(path))

    def open_graph(self, path: Path, names: list[str]) -> Encode:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path)).eval()

        def encode(inputs: dict[str, Tensor]) -> Tensor:
            out: Tensor = module(*(inputs[n] for n in names))
            return out

        return encode
