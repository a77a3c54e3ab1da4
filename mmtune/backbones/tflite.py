"""Load frozen encoders from TFLite files: `tflite:FILE.tflite?rate=16000&output=NAME` (see `frozen_network` for the options)."""

import difflib
import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune.backbones import Backbone
from mmtune.backbones.frozen_network import CONFIG, frozen_backbone, read_checkpoint
from mmtune.contracts import JsonObject
from mmtune.errors import MissingExtra, ModelError, first_line

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

FILE = "network.tflite"


def load(checkpoint: str) -> Backbone:
    """Load a TFLite file. Raises ModelError if it cannot be used, and MissingExtra if the runtime is not installed."""
    file, options = read_checkpoint("tflite", checkpoint, ".tflite")
    return _backbone(f"tflite:{file}", file.read_bytes(), dict(options))


def rebuild(directory: Path) -> Backbone:
    """Build the backbone from its files in an artifact, which contain the network."""
    return _backbone(f"tflite:{directory}", (directory / FILE).read_bytes(), json.loads((directory / CONFIG).read_text()))


def _backbone(where: str, data: bytes, config: JsonObject) -> Backbone:
    try:
        runner = TfliteRunner(data, config.get("output"))
    except ModelError as e:
        raise ModelError(f"{where}: {e}") from None
    except (ValueError, RuntimeError) as e:
        raise ModelError(f"{where}: not a TFLite network ({first_line(e)[:200]})") from None
    return frozen_backbone("tflite", where, runner, config, FILE, data)


class TfliteRunner:
    """Executes a TFLite network, one input at a time."""

    def __init__(self, data: bytes, output: str | None):
        """output: name of the tensor to return; None means the network's output"""
        self.data, self.output = data, output
        self._interpreter: Interpreter | None = None
        (given,) = self._opened().get_input_details() if len(self._opened().get_input_details()) == 1 else [None]
        if given is None or given["dtype"] is not np.float32:
            raise ModelError("the network must have one input, of float32 numbers")
        self.input = int(given["index"])
        self.input_shape: list[int | None] = [None if d < 0 else int(d) for d in given["shape_signature"]]
        if len(self.input_shape) > 1:
            self.input_shape[0] = 1
        self.index = self._find(output)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_interpreter": None}

    def _opened(self) -> "Interpreter":
        """Return the interpreter, which is created again in another process or in a copy of the model."""
        if self._interpreter is None:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            try:
                from ai_edge_litert.interpreter import Interpreter, OpResolverType
            except ImportError:
                raise MissingExtra('tflite: needs ai-edge-litert: pip install "mmtune[tflite]"') from None
            kernels = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if self.output else OpResolverType.AUTO
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns that inner tensors take memory
                self._interpreter = Interpreter(
                    model_content=self.data,
                    experimental_preserve_all_tensors=bool(self.output),
                    experimental_op_resolver_type=kernels,
                )
            self._interpreter.allocate_tensors()
        return self._interpreter

    def _find(self, output: str | None) -> int:
        """Return the number of a tensor. Converters join several names by ";", any of which is accepted."""
        if output is None:
            details = self._opened().get_output_details()
            if len(details) != 1:
                names = ", ".join(str(d["name"]).split(";")[0] for d in details)
                raise ModelError(f"the network has several outputs; choose one by ?output=NAME: {names}")
            return int(details[0]["index"])
        tensors = [d for d in self._opened().get_tensor_details() if d["dtype"] is np.float32]
        found = [d for d in tensors if output == str(d["name"]).split(";")[0]] or [
            d for d in tensors if output in str(d["name"]).split(";")
        ]
        if not found:
            known = list(dict.fromkeys(n for d in tensors if (n := str(d["name"]).split(";")[0])))
            near = difflib.get_close_matches(output, known, 3, 0.4)
            raise ModelError(
                f"no tensor {output!r}; similar: {', '.join(near) or 'none'}; the last ones: {', '.join(known[-5:])}"
            )
        return int(found[-1]["index"])

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Run the network on one input."""
        interpreter = self._opened()
        if list(interpreter.get_input_details()[0]["shape"]) != list(batch.shape):
            interpreter.resize_tensor_input(self.input, batch.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(self.input, np.ascontiguousarray(batch, np.float32))
        interpreter.invoke()
        return np.array(interpreter.get_tensor(self.index))
