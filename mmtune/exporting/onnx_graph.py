"""Export to ONNX: `onnxruntime.InferenceSession("DIR/MODALITY/model.onnx")`. Recorded by torch's exporter with dynamic axes."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from mmtune.errors import MissingExtra
from mmtune.exporting.graph_format import GraphFormat, numpy_encode
from mmtune.exporting.tower_graph import OUTPUT, Encode, Recording

INSTALL = 'pip install "mmtune[onnx]"'


class OnnxGraph(GraphFormat):
    """Writes one ONNX file for each tower, with all its weights in it."""

    quantizes = True
    name, file = "onnx", "model.onnx"
    usage = (
        "import onnxruntime\n"
        'session = onnxruntime.InferenceSession("DIR/MODALITY/model.onnx")\n'
        '(vectors,) = session.run(["vector"], inputs)  # graph.json lists the inputs'
    )

    def write_graph(self, recording: Recording, path: Path, quantize: str | None) -> None:
        write_onnx(recording, path)
        if quantize:
            quantize_onnx(path)

    def open_graph(self, path: Path, names: list[str]) -> Encode:
        return open_onnx(path)


def write_onnx(recording: Recording, path: Path) -> None:
    """Record a tower as an ONNX file. Raises MissingExtra if onnx or onnxscript is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise MissingExtra(f"export to onnx needs onnx and onnxscript: {INSTALL}") from None
    axes = tuple({i: torch.export.Dim.AUTO for i in dynamic} for dynamic in recording.dynamic_axes())
    inputs = tuple(recording.batches[0][n] for n in recording.names)
    with quiet():
        torch.onnx.export(
            recording.graph,
            inputs,
            str(path),
            dynamo=True,
            dynamic_shapes=(axes,),
            input_names=recording.names,
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )


def open_onnx(path: Path) -> Encode:
    """Open an ONNX file with onnxruntime on the CPU."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra(f"checking an export to onnx needs onnxruntime: {INSTALL}") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = [i.name for i in session.get_inputs()]  # an input that the tower does not use is not in the graph

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        (out,) = session.run([OUTPUT], {k: inputs[k] for k in wanted})
        return np.asarray(out)

    return numpy_encode(run)


def quantize_onnx(path: Path) -> None:
    """Store weights as 8-bit integers, by onnxruntime's dynamic quantisation.

    Matrix products get one scale for each output column. Tables of embeddings (Gather) get one scale, which is all that onnxruntime has for
    them; in a small text encoder they are half of the file.
    """
    try:
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError:
        raise MissingExtra(f"--quantize int8 needs onnx and onnxruntime: {INSTALL}") from None
    full = path.with_name("full.onnx")
    path.rename(full)
    with quiet():
        quantize_dynamic(
            str(full),
            str(path),
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        )
    full.unlink()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages of the exporters."""
    import os

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
