"""Rows in memory as a source of `mmtune pack`: a list of dicts, a dict of lists, a pandas DataFrame, an Arrow table, or a
`datasets.Dataset`.

Cells may also be library objects: PIL images, arrays, pairs (samples, sample rate), dictionaries of Hugging Face datasets, open
binary files. They are encoded without loss. Media columns of a `datasets.Dataset` are read undecoded, so that their files are packed
as they are.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from mmtune import modalities
from mmtune.data.sources.row_source import Cells, InvalidRow, RowSource
from mmtune.errors import DataError, Rejected

NAME = "data in memory"
"""What messages call such a source."""
InMemory: TypeAlias = object
"""Rows in memory: a list of dicts, a dict of lists, a pandas DataFrame, an Arrow table, or a `datasets.Dataset`."""
RowIterator: TypeAlias = Callable[[], Iterable[Mapping[str, object]]]


def is_in_memory(data: object) -> bool:
    """Whether `data` are rows in memory, not a path, a pattern, or a list of them."""
    if isinstance(data, str | os.PathLike):
        return False
    if isinstance(data, list | tuple):
        return not data or isinstance(data[0], Mapping)
    return isinstance(data, Mapping) or _library(data) in ("pandas", "pyarrow", "datasets")


def memory_source(data: InMemory) -> RowSource:
    """Open rows in memory as a source.

    Raises DataError for data of another type, without rows, or with several splits.
    """
    columns, count, rows = _rows_of(data)
    if not count:
        raise DataError(f"{NAME}: no rows")

    def read(_: set[str]) -> Iterator[Cells | InvalidRow]:
        for row in rows():
            yield {str(c): _cell(v) for c, v in row.items()}

    digest = hashlib.sha256()
    for row in rows():
        for column, value in row.items():
            _add_to_digest(digest, str(column))
            _add_to_digest(digest, value)
        digest.update(b"\n")
    return RowSource(Path(NAME), "memory", Path.cwd(), [str(c) for c in columns], count, digest.hexdigest(), read)


def _library(data: object) -> str:
    return type(data).__module__.partition(".")[0]


def _rows_of(data: object) -> tuple[list[str], int, RowIterator]:
    """Return (columns, number of rows, function that iterates over the rows)."""
    if isinstance(data, list | tuple) and all(isinstance(row, Mapping) for row in data):
        rows: Sequence[Mapping[str, object]] = data
        return list(dict.fromkeys(c for row in rows for c in row)), len(rows), lambda: rows
    library = _library(data)
    if library == "datasets" and isinstance(data, Mapping):
        raise DataError(f"{NAME}: a dataset with the splits {', '.join(map(str, data))}; give one of them, e.g. data['train']")
    if isinstance(data, Mapping):
        lists: dict[str, Sequence[object]] = {str(c): list(v) for c, v in data.items()}
        if len({len(v) for v in lists.values()}) > 1:
            raise DataError(f"{NAME}: lists of different lengths ({', '.join(f'{len(v)} {c}' for c, v in lists.items())})")
        return list(lists), len(next(iter(lists.values()), [])), lambda: _from_lists(lists)
    if library == "pandas" and hasattr(data, "columns"):
        frame = {str(c): data[c] for c in data.columns}  # type: ignore[index]
        return list(frame), len(data), lambda: _from_lists(frame)  # type: ignore[arg-type]
    if library == "pyarrow" and hasattr(data, "to_batches"):
        return list(data.column_names), data.num_rows, lambda: (r for b in data.to_batches(64) for r in b.to_pylist())  # type: ignore[attr-defined]
    if library == "datasets" and hasattr(data, "features") and hasattr(data, "__len__"):
        encoded = _undecoded(data)
        return list(encoded.column_names), len(encoded), lambda: encoded  # type: ignore[attr-defined, arg-type, return-value]
    raise DataError(
        f"{NAME}: a {type(data).__name__}; give a list of dicts, a dict of lists, a pandas DataFrame, a pyarrow Table or a "
        "datasets.Dataset"
    )


def _from_lists(columns: Mapping[str, Iterable[object]]) -> Iterator[dict[str, object]]:
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _undecoded(data: object) -> object:
    """A `datasets.Dataset` whose media columns give {"bytes", "path"} instead of decoded signals."""
    for column, feature in data.features.items():  # type: ignore[attr-defined]
        if getattr(feature, "decode", False) is True and is_dataclass(feature) and not isinstance(feature, type):
            data = data.cast_column(column, replace(feature, decode=False))  # type: ignore[attr-defined]
    return data


def _cell(value: object) -> object:
    """Convert a value to a cell of a source: library objects to their encoded bytes, numpy scalars to Python's."""
    if value is None or isinstance(value, str | bytes | int | float | Path):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, list):
        return [_cell(v) for v in value]
    if hasattr(value, "read") and hasattr(value, "seek") and hasattr(value, "tell") and not isinstance(value, io.BytesIO):
        start = value.tell()
        data = value.read()
        value.seek(start)  # the rows are read twice
        return {"bytes": data, "path": None} if isinstance(data, bytes) else value
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value) and "array" not in value:
        return dict(value)
    for name in modalities.names():
        if not modalities.get(name).language:
            try:
                return {"bytes": modalities.get(name).encode_value(value), "path": None}
            except Rejected:
                continue
    return dict(value) if isinstance(value, Mapping) else value


def _add_to_digest(digest: "hashlib._Hash", value: object) -> None:
    """Add a value to the hash of the data. Paths of local files count with the file's size and modification time."""
    if isinstance(value, bytes | bytearray):
        digest.update(b"bytes" + len(value).to_bytes(8, "little"))
        digest.update(value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        digest.update(f"array {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif hasattr(value, "tobytes") and hasattr(value, "mode") and hasattr(value, "size"):  # a PIL image
        digest.update(f"picture {value.mode} {value.size}".encode())
        digest.update(value.tobytes())
    elif isinstance(value, Mapping):
        for key in value:
            _add_to_digest(digest, key)
            _add_to_digest(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for item in value:
            _add_to_digest(digest, item)
    else:
        value = _cell(value)
        if isinstance(value, dict):
            _add_to_digest(digest, value)
            return
        digest.update(f"{type(value).__name__} {value}\0".encode("utf-8", "replace") + _file_stamp(value))


def _file_stamp(value: object) -> bytes:
    if not isinstance(value, str | Path) or len(str(value)) > 4096:
        return b""
    try:
        info = os.stat(value)
        return f"{info.st_size}:{info.st_mtime_ns}".encode()
    except (OSError, ValueError):
        return b""
