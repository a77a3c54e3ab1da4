"""Export a model: write it in a format, compare the vectors, check retrieval, and publish the directory as a whole."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.decode import decode_row
from mmtune.errors import ModelError, RecipeError
from mmtune.evaluation.model_and_data import as_data
from mmtune.exporting.export_checks import check_differences, items_a_second, largest_drop, recall_of_both, vector_differences
from mmtune.exporting.export_result import ExportResult
from mmtune.exporting.format_table import ExportFormat, ExportRequest, Written, export_format
from mmtune.model.artifact import load, save
from mmtune.model.artifact.format import is_system_file
from mmtune.model.dual_encoder import Model
from mmtune.runtime.files import atomic_dir, write_json, write_text
from mmtune.runtime.progress import Progress
from mmtune.runtime.version import __version__

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.data.shards.dataset import Data

MANIFEST, FORMAT = "mmtune_export.json", 1


class _Refused(Exception):
    """The export does not pass the retrieval gate; nothing is published."""


def export(
    model: "Model | str | Path | Mapping[str, str]",
    out: str | Path,
    *,
    to: str,
    dim: int | None = None,
    mel: str = "outside",
    quantize: str | None = None,
    data: "DataLike | None" = None,
    max_drop: float = 0.01,
    check: bool = True,
    speed: bool = False,
    quiet: bool = True,
) -> ExportResult:
    """Export a model; the arguments are explained in `mmtune.export`.

    Raises ModelError if the format can hold none of the towers, if the vectors differ, or if `out` holds other files.
    """
    target = export_format(to)
    _check_options(to, target, mel, quantize, data, max_drop)
    directory = Path(out)
    refuse_other_files(directory)
    source = "" if isinstance(model, Model) else "" if isinstance(model, Mapping) else str(model)
    plain = _plain_model(model, dim)
    opened = None if data is None else as_data(data)
    request = ExportRequest(source, quantize, mel, example_signals(plain, opened))
    try:
        with atomic_dir(directory) as tmp, Progress("export", 3, "steps", quiet) as progress:
            progress.print(f"export: writing {to}")
            written = target.write(plain, tmp, request)
            progress.advance(1, "opening it again")
            result = ExportResult(
                to, str(directory), plain.fingerprint, written.towers, written.left_out, written.notes, written.usage
            )
            exported = target.reopen(plain, tmp, written) if check or speed or opened is not None else None
            if exported is None and opened is not None:
                raise ModelError(
                    f"export to {to}: --data needs a format that mmtune can run; this export cannot be run by itself"
                )
            progress.advance(1, "comparing it with the model")
            if exported is not None:
                _compare(plain, exported, target, request, result, check=check, speed=speed)
                result.same_fingerprint = exported.fingerprint == plain.fingerprint if written.model else None
            if exported is not None and opened is not None:
                result.recall = recall_of_both(plain, exported, opened, quiet)
                if largest_drop(result.recall) > max_drop:
                    raise _Refused
            write_json(tmp / MANIFEST, _manifest(plain, written, result))
            if not (tmp / "README.md").exists():
                write_text(tmp / "README.md", _readme(result))
            result.bytes = sum(p.stat().st_size for p in tmp.rglob("*") if p.is_file())
    except _Refused:
        result.accepted, result.out = False, ""
    return result


def _compare(
    plain: Model,
    exported: Model,
    target: ExportFormat,
    request: ExportRequest,
    result: ExportResult,
    *,
    check: bool,
    speed: bool,
) -> None:
    if check:
        result.difference = vector_differences(plain, exported, request.signals)
        if request.quantize is None:  # what 8-bit weights change is judged by retrieval
            check_differences(result.difference, target.tolerance, result.format)
    if speed:
        result.speed = items_a_second(plain, exported, request.signals)


def _check_options(
    to: str, target: ExportFormat, mel: str, quantize: str | None, data: "DataLike | None", max_drop: float
) -> None:
    if mel not in ("inside", "outside"):
        raise RecipeError(f"--mel {mel!r}: inside or outside")
    if quantize not in (None, "int8"):
        raise RecipeError(f"--quantize {quantize!r}: the only one is int8")
    if quantize and not target.quantizes:
        raise RecipeError(f"--quantize int8: the format {to} has no 8-bit weights; onnx and openvino have")
    if quantize and data is None:
        raise RecipeError("--quantize int8 needs --data: packed rows on which recall@10 of model and export are compared")
    if not 0 <= max_drop <= 1:
        raise RecipeError(f"--max-drop {max_drop}: a difference of recall@10, from 0 to 1")


def refuse_other_files(directory: Path) -> None:
    """Raise ModelError if an export at `directory` would delete anything but an earlier export."""
    if directory.is_file():
        raise ModelError(f"{directory}: this is a file; export into a new or empty directory")
    if not directory.exists() or (directory / MANIFEST).is_file():
        return
    if others := sorted(p.name for p in directory.iterdir() if not is_system_file(p.name)):
        raise ModelError(
            f"{directory}: contains files that are not an export's ({others[0]}); export into a new or empty directory"
        )


def _plain_model(model: "Model | str | Path | Mapping[str, str]", dim: int | None) -> Model:
    """Return the model on the CPU, with the modules of the upstream libraries."""
    if not isinstance(model, Model):
        run = Path(model) / "artifact" if isinstance(model, str | Path) else None
        return load(run if run is not None and run.is_dir() else model, "cpu", dim=dim, cpu_kernels="off")
    with tempfile.TemporaryDirectory() as tmp:
        save(model, Path(tmp) / "model")
        return load(Path(tmp) / "model", "cpu", dim=dim, cpu_kernels="off")


def example_signals(model: Model, data: "Data | None") -> dict[str, list[object]]:
    """Return three signals for each modality: made-up ones, or the first rows of the data if the modality makes none up."""
    found: dict[str, list[object]] = {}
    for m in model.towers:
        try:
            found[m] = modalities.get(m).examples()
        except NotImplementedError:
            rows = [] if data is None or m not in data.modalities else np.flatnonzero(data.present[m])[:3].tolist()
            if rows:
                signals: list[object] = [decode_row(data, row, m) for row in rows]  # type: ignore[arg-type]  # there are rows
                found[m] = (signals * 3)[:3]
    return found


def _manifest(model: Model, written: Written, result: ExportResult) -> JsonObject:
    return {
        "format": FORMAT,
        "mmtune": __version__,
        "to": result.format,
        "fingerprint": result.fingerprint,
        "dim": model.dim,
        "towers": written.towers,
        "left_out": written.left_out,
        "notes": written.notes,
        "model": written.model,
        "prompts": model.prompts,
        "difference": result.difference,
        "recall": result.recall,
    }


def _readme(result: ExportResult) -> str:
    lines = [f"# Export of an mmtune model to {result.format}", "", f"- fingerprint of the model: `{result.fingerprint}`"]
    lines += [f"- {m}: `{path}`" for m, path in result.towers.items()]
    lines += [f"- {m}: left out, because {why}" for m, why in result.left_out.items()]
    lines += [f"- {note}" for note in result.notes]
    return "\n".join([*lines, "", "```python", result.usage, "```", ""])
