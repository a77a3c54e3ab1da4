"""The public functions `export`, `push_to_hub` and `register_export_format`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.runtime.openmp_policy import set_openmp_wait_policy

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.exporting.export_result import ExportResult
    from mmtune.model.dual_encoder import Model


def export(
    model: Model | str | Path | Mapping[str, str],
    out: str | Path,
    *,
    to: str,
    dim: int | None = None,
    mel: str = "outside",
    quantize: str | None = None,
    data: DataLike | None = None,
    max_drop: float = 0.01,
    check: bool = True,
    speed: bool = False,
    quiet: bool = True,
) -> ExportResult:
    """Export a model to the format of another library or runtime, and compare the vectors.

    model: a `Model`, what `mmtune.load` accepts, or a run directory; adapters are merged, except for "peft"
    out: directory to write, as a whole or not at all; it must be new, empty, or an earlier export
    to: "hf" (a folder of transformers), "open_clip", "sentence-transformers", "peft" (the adapters of a run), "onnx", "openvino",
        "torchscript", a registered format, or "package.module:Class"
    dim: truncate the embeddings to this many dimensions (Matryoshka)
    mel: "inside": graphs compute spectrograms from samples; "outside": their input is the spectrogram
    quantize: "int8" stores weights as 8-bit integers (onnx, openvino); needs `data`
    data: packed data or rows on which recall@10 of model and export are compared
    max_drop: the export is refused (`accepted` is False, nothing is written) if recall@10 falls by more in any direction
    check: raise ModelError if the vectors of made-up values differ by more than 1e-5 (libraries of torch) or 1e-4 (onnx, openvino)
    speed: measure items a second of model and export
    quiet: show no progress of the evaluation

    Raises ModelError if the format can hold none of the towers, or if `out` contains other files. What the format cannot hold is in
    the result's `left_out` and `notes`.
    """
    set_openmp_wait_policy()
    from mmtune.exporting.export_model import export as export_

    return export_(
        model,
        out,
        to=to,
        dim=dim,
        mel=mel,
        quantize=quantize,
        data=data,
        max_drop=max_drop,
        check=check,
        speed=speed,
        quiet=quiet,
    )


def register_export_format(name: str, target: type | str) -> None:
    """Register an export format for `export(to=name)`.

    target: a class that implements `mmtune.exporting.ExportFormat`, or "package.module:Class"
    """
    from mmtune.exporting.format_table import register_format

    register_format(name, target)
