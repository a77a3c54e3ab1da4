"""Load frozen encoders from ONNX files: `onnx:FILE.onnx?mean=0.5&std=0.5` (see `frozen_network` for the options)."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.backbones import Backbone
from mmtune.backbones.frozen_network import CONFIG, frozen_backbone, read_checkpoint
from mmtune.contracts import JsonObject
from mmtune.errors import MissingExtra, ModelError, first_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FILE = "network.onnx"
INSTALL = 'pip install "mmtune[onnx]"'


def load(checkpoint: str) -> Backbone:
    """Load an ONNX file. Raises ModelError if it cannot be used, and MissingExtra if the runtime is not installed."""
    file, options = read_checkpoint("onnx", checkpoint, ".onnx")
    return _backbone(f"onnx:{file}", _with_output(file, options.get("output")), dict(options))


def rebuild(directory: Path) -> Backbone:
    """Build the backbone from its files in an artifact, which contain the network."""
    return _backbone(f"onnx:{directory}", (directory / FILE).read_bytes(), json.loads((directory / CONFIG).read_text()))


def _with_output(file: Path, output: str | None) -> bytes:
    """Return the network with all its weights in one file and with `output` as its only output."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra(f"onnx: needs onnx and onnxruntime: {INSTALL}") from None
    try:
        model = onnx.load(str(file))  # with the weights that lie beside the file
    except Exception as e:  # protobuf and onnx raise unrelated exception types
        raise ModelError(f"onnx:{file}: not an ONNX network ({type(e).__name__})") from None
    if output is not None:
        made = {name for node in model.graph.node for name in node.output}
        if output not in made:
            last = ", ".join(name for node in model.graph.node[-5:] for name in node.output)
            raise ModelError(f"onnx:{file}: no tensor {output!r}; the last ones are {last}")
        del model.graph.output[:]
        model.graph.output.append(onnx.ValueInfoProto(name=output))
    if model.ByteSize() > 2**31 - 1:
        raise ModelError(f"onnx:{file}: networks above 2 GB are not supported")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _backbone(where: str, data: bytes, config: JsonObject) -> Backbone:
    try:
        runner = OnnxRunner(data)
    except MissingExtra:
        raise
    except ModelError as e:
        raise ModelError(f"{where}: {e}") from None
    except Exception as e:  # onnxruntime raises exceptions of its own, without a common base class
        raise ModelError(f"{where}: onnxruntime cannot open the network ({first_line(e)[:200]})") from None
    return frozen_backbone("onnx", where, runner, config, FILE, data)


class OnnxRunner:
    """Executes an ONNX network on the CPU."""

    def __init__(self, data: bytes):
        self.data = data
        self._session: InferenceSession | None = None
        inputs, outputs = self._opened().get_inputs(), self._opened().get_outputs()
        if len(inputs) != 1 or inputs[0].type != "tensor(float)":
            raise ModelError("the network must have one input, of float32 numbers")
        if len(outputs) != 1:
            raise ModelError(
                f"the network has several outputs; choose one by ?output=NAME: {', '.join(o.name for o in outputs)}"
            )
        self.input, self.output = inputs[0].name, outputs[0].name
        self.input_shape: list[int | None] = [d if isinstance(d, int) else None for d in inputs[0].shape]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_session": None}

    def _opened(self) -> "InferenceSession":
        """Return the session, which is created again in another process or in a copy of the model."""
        if self._session is None:
            try:
                import onnxruntime
            except ImportError:
                raise MissingExtra(f"onnx: needs onnx and onnxruntime: {INSTALL}") from None
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(self.data, options, providers=["CPUExecutionProvider"])
        return self._session

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network on a batch."""
        (out,) = self._opened().run([self.output], {self.input: np.ascontiguousarray(batch, np.float32)})
        return np.asarray(out)
