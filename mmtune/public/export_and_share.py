"""The public functions `export`, `push_to_hub` and `register_export_format`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.runtime.openmp_policy import set_openmp_wait_policy

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.exporting.export_result import ExportResult
    from mmtune.exporting.hub_upload import UploadResult
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


def push_to_hub(
    model: Model | str | Path,
    repo: str,
    *,
    to: str = "mmtune",
    private: bool = False,
    license: str | None = None,
    language: Sequence[str] = (),
    datasets: Sequence[str] = (),
    training_data: str = "",
    message: str = "Upload with mmtune",
    token: str | None = None,
) -> UploadResult:
    """Upload a model and its card to the Hugging Face hub. `mmtune.load("hub:ORG/NAME")` loads it.

    The card has the measured table in the hub's metadata, how the model was tuned, and what you say about data and licence. The
    record of training rows is not uploaded.

    model: a `Model`, what `mmtune.load` accepts, or a run directory
    repo: "ORG/NAME"; created if it does not exist
    to: "mmtune" uploads the artifact; a name of `export` uploads that format instead, e.g. "sentence-transformers"
    private: whether a new repository is private
    license: licence of the weights, as the hub names it, e.g. "apache-2.0"
    language: ISO codes of the captions' languages
    datasets: names of data sets on the hub that it was trained on
    training_data: sentences about the training data, for the card
    message: commit message
    token: access token; None means that of HF_TOKEN or `hf auth login`

    Raises ModelError if the upload fails.
    """
    set_openmp_wait_policy()
    from mmtune.exporting.hub_upload import push_to_hub as push

    return push(
        model,
        repo,
        to=to,
        private=private,
        license=license,
        language=language,
        datasets=datasets,
        training_data=training_data,
        message=message,
        token=token,
    )


def register_export_format(name: str, target: type | str) -> None:
    """Register an export format for `export(to=name)`.

    target: a class that implements `mmtune.exporting.ExportFormat`, or "package.module:Class"
    """
    from mmtune.exporting.format_table import register_format

    register_format(name, target)
