"""Predict the files of a folder as they arrive, each once, also when the process is killed and started again.

The answers are lines of a JSONL file. A line is written in one piece, and a file is answered if and only if its line is there. A
file that is written again under the same name (another size or time) is answered again. Only one process may watch with one
JSONL file. Every line names the task, the fingerprint of the model and the threshold, and a file has the lines of one model and task.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.prediction.predict import CHUNK, predict_inputs
from mmtune.prediction.predict_inputs import file_input, media_files, modality_of_file
from mmtune.prediction.predictors import Predictor
from mmtune.runtime.files import append_jsonl, read_jsonl_log, truncate_torn_line
from mmtune.runtime.work_lock import Timeout, file_lock

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

Version: TypeAlias = tuple[str, int, int]
"""Path relative to the folder, size in bytes, and time of the last change in ns."""


def watch(
    model: "Model",
    predictors: dict[str, Predictor],
    folder: str | Path,
    out: str | Path,
    *,
    interval: float = 2.0,
    batch_size: int = 64,
    locate: float | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[JsonObject]:
    """Append an answer for each new file to the JSONL file `out`, and yield it, until `stop()` is true.

    folder: files below it whose extension is of a modality in `predictors`
    interval: seconds between two looks at the folder; a file is predicted when its size and time have not changed in between
    locate: as in `mmtune.predict`
    stop: asked after each look

    Raises DataError if there is no such folder, if another process watches with the same `out`, or if `out` has answers of another
    model or task.
    """
    folder, out = Path(folder), Path(out)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder to watch")
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = file_lock(f"{out}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{out}: another process is writing its answers there") from None
    try:
        if out.exists():
            truncate_torn_line(out)
        answered = _answered(out, _origin(model, predictors))
        names = list(predictors)
        before: set[Version] = set()
        while True:
            now = _versions(folder, names)
            ready = sorted((now & before) - answered)
            for start in range(0, len(ready), CHUNK):
                yield from _answer(model, predictors, folder, ready[start : start + CHUNK], out, batch_size, locate)
            answered |= set(ready)
            before = now
            if stop():
                return
            time.sleep(interval)
    finally:
        lock.release()


def _answer(
    model: "Model",
    predictors: dict[str, Predictor],
    folder: Path,
    versions: Sequence[Version],
    out: Path,
    batch_size: int,
    locate: float | None,
) -> Iterator[JsonObject]:
    inputs = [file_input(folder / path, list(predictors)) for path, _, _ in versions]
    origin = _origin(model, predictors)
    thresholds = {m: p.threshold.value for m, p in predictors.items() if p.threshold is not None}
    for (path, size, changed), done in zip(
        versions, predict_inputs(model, predictors, inputs, batch_size, locate), strict=True
    ):
        document = {**done.to_dict(), "file": path, "bytes": size, "changed_ns": changed, **origin}
        if (m := document.get("modality")) in thresholds:
            document["threshold"] = thresholds[m]
        append_jsonl(out, document)
        yield document


def _origin(model: "Model", predictors: dict[str, Predictor]) -> dict[str, str]:
    """What every line says of the predictors: their task, and the fingerprint of the model."""
    return {"task": next(p.task for p in predictors.values()), "fingerprint": model.fingerprint}


def _answered(out: Path, origin: dict[str, str]) -> set[Version]:
    """Return the files that have a line in `out`. Lines of earlier versions do not name their task and model."""
    lines = read_jsonl_log(out) if out.exists() else []
    for line in lines:
        for key, value in origin.items():
            if line.get(key, value) != value:
                raise DataError(
                    f"{out}: has answers of another {'model' if key == 'fingerprint' else key} ({line[key]}); this is {value}: write those "
                    "of this one to another --out, because their scores cannot be compared"
                )
    return {(line["file"], line["bytes"], line["changed_ns"]) for line in lines}


def _versions(folder: Path, names: Sequence[str]) -> set[Version]:
    """Return the files of the folder that can be predicted. Files that vanish meanwhile are left out."""
    found = set()
    for path in media_files(folder):
        if modality_of_file(path, names):
            try:
                stat = os.stat(path)
            except FileNotFoundError:
                continue
            found.add((path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    return found
