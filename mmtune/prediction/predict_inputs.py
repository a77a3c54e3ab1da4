"""What `mmtune predict` predicts: files, folders of files, packed data, or values in memory, each as one input."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.data.decode import decode_row
from mmtune.data.sources.media_folder import is_hidden_or_system
from mmtune.errors import DataError, Rejected
from mmtune.evaluation.model_and_data import as_data
from mmtune.model.encode import infer_modality

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


@dataclass(frozen=True)
class PredictInput:
    """One value to predict.

    name: its path as given, its row id, or its number in a list of values
    modality: None if no modality of the model reads it
    decode: returns the signal, or raises Rejected or DataError
    read: returns the encoded bytes, for a page that shows the value
    """

    name: str
    modality: str | None
    decode: Callable[[], Signal]
    read: Callable[[], bytes]


@dataclass
class PredictInputs:
    """All inputs. ignored: number of files in folders that are of no modality of the model."""

    inputs: list[PredictInput] = field(default_factory=list)
    ignored: int = 0


def predicted_modalities(model: "Model", only: Sequence[str] | None = None) -> list[str]:
    """Return the modalities to predict: `only`, or the model's modalities other than text if there are any."""
    unknown = [m for m in only or () if m not in model.towers]
    if unknown:
        raise DataError(f"this model has no {unknown[0]} tower; it has {', '.join(model.towers)}")
    return list(only) if only else modalities.non_language(model.towers)


def find_inputs(model: "Model", given: object, only: Sequence[str] | None = None) -> PredictInputs:
    """Return the inputs that `given` names.

    given: a path (file, folder of files, packed data), opened data, or a list of paths and values (images, arrays, ...)
    only: predict only these modalities

    Raises DataError if there is no input.
    """
    names, found = predicted_modalities(model, only), PredictInputs()
    for number, one in enumerate(given if isinstance(given, list | tuple) else [given]):
        if isinstance(one, str | os.PathLike):
            _add_path(found, str(one), names)
        elif hasattr(one, "labels"):
            _add_rows(found, one, names)
        else:
            _add_value(found, model, number, one, names)
    if not found.inputs:
        raise DataError(f"nothing to predict: no file of the modalities {', '.join(names)}")
    return found


def is_packed(path: str) -> bool:
    """Whether `path` names packed data: a folder with an index or tar files, a tar file, a brace pattern or a URL."""
    if "://" in path or (not os.path.exists(path) and any(c in path for c in "{*[")):
        return True
    place = Path(path)
    if place.is_dir():
        return (place / "index.json").is_file() or any(place.glob("*.tar"))
    return place.suffix == ".tar"


def media_files(folder: str | Path) -> Iterator[Path]:
    """Yield all files below a folder in sorted order, without hidden files and those of operating systems."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(d for d in folders if not is_hidden_or_system(d))
        yield from (Path(place) / f for f in sorted(files) if not is_hidden_or_system(f))


def modality_of_file(path: str | Path, names: Sequence[str]) -> str | None:
    """Return the modality of `names` that reads files with this extension, or None."""
    suffix = os.path.splitext(path)[1][1:].lower()
    return next((m for m in names if suffix in modalities.get(m).extensions), None)


def file_input(path: str | Path, names: Sequence[str]) -> PredictInput:
    """Return the input of one file. Without a modality its `decode` raises Rejected."""
    name = modality_of_file(path, names)

    def decode() -> Signal:
        if not os.path.exists(path):
            raise Rejected("no such file or directory")
        if name is None:
            suffix = os.path.splitext(path)[1] or "without an extension"
            raise Rejected(f"no modality of {', '.join(names)} reads files {suffix}")
        return modalities.get(name).from_file(path)

    return PredictInput(str(path), name, decode, Path(path).read_bytes)


def _add_path(found: PredictInputs, path: str, names: Sequence[str]) -> None:
    if is_packed(path):
        _add_rows(found, as_data(path), names)
    elif os.path.isdir(path):
        files = list(media_files(path))
        readable = [f for f in files if modality_of_file(f, names)]
        found.ignored += len(files) - len(readable)
        found.inputs += [file_input(f, names) for f in readable]
    else:
        found.inputs.append(file_input(path, names))


def _add_rows(found: PredictInputs, data: "Data", names: Sequence[str]) -> None:
    shared = [m for m in names if m in data.modalities]
    if not shared:
        raise DataError(f"{data.spec}: has {', '.join(data.modalities)}; this model predicts {', '.join(names)}")
    for i, row in enumerate(data.ids):
        for m in shared:
            if data.present[m][i]:
                decode, read = functools.partial(decode_row, data, i, m), functools.partial(data.read, i, m)
                found.inputs.append(PredictInput(row, m, decode, read))


def _add_value(found: PredictInputs, model: "Model", number: int, value: object, names: Sequence[str]) -> None:
    name = names[0] if len(names) == 1 else infer_modality(model, [value])
    kind = modalities.get(name)
    found.inputs.append(
        PredictInput(str(number), name, functools.partial(kind.coerce, value), functools.partial(kind.encode_value, value))
    )
