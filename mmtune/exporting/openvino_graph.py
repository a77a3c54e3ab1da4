"""Export to OpenVINO: `openvino.Core().compile_model("DIR/MODALITY/model.xml")`. Converted from ONNX."""

from pathlib import Path

import numpy as np

from mmtune.errors import MissingExtra
from mmtune.exporting.graph_format import GraphFormat, numpy_encode
from mmtune.exporting.onnx_graph import quiet, write_onnx
from mmtune.exporting.tower_graph import Encode, Recording

INSTALL = 'pip install "mmtune[openvino]"'


class OpenVinoGraph(GraphFormat):
    """Writes model.xml and model.bin for each tower, with weights in float32, or in 8 bits."""

    quantizes = True
    name, file = "openvino", "model.xml"
    usage = (
        "import openvino\n"
        'compiled = openvino.Core().compile_model("DIR/MODALITY/model.xml", "CPU")\n'
        "vectors = compiled(inputs)[0]  # graph.json lists the inputs"
    )

    def write_graph(self, recording: Recording, path: Path, quantize: str | None) -> None:
        try:
            import openvino
        except ImportError:
            raise MissingExtra(f"export to openvino needs openvino: {INSTALL}") from None
        onnx = path.with_suffix(".onnx")
        write_onnx(recording, onnx)
        with quiet():
            model = openvino.convert_model(str(onnx))
            if quantize:
                model = _quantized(model)
            openvino.save_model(model, str(path), compress_to_fp16=False)
        onnx.unlink()

    def open_graph(self, path: Path, names: list[str]) -> Encode:
        import openvino

        compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        wanted = [i.get_any_name() for i in compiled.inputs]

        def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
            return np.array(compiled({k: inputs[k] for k in wanted})[0])

        return numpy_encode(run)


def _quantized(model: object) -> object:
    """Store the weights as 8-bit integers with a scale for each output channel, by NNCF."""
    try:
        import nncf
    except ImportError:
        raise MissingExtra(f"--quantize int8 for openvino needs nncf: {INSTALL}") from None
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
