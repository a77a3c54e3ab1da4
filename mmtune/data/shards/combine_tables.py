"""Combine the tables of all shards of a dataset to one memory-mapped Arrow file, which is kept in the cache.

Columns of the combined table, each one contiguous array:
    id, group, meta: strings; meta is JSON or empty
    shard: number of the shard
    id.label, group.label, row.label: identity labels
    MODALITY.offset, .size, .field, .item, .label, .present: for each modality of which a row has a value

Columns are written to files while the tables of the shards are read one after another, and these files are mapped. Only a sorted copy of
the labels of ids is in memory, 8 bytes a row.
"""

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmtune import modalities
from mmtune.data.identity_labels import mix_labels, stable_label
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.errors import DataError
from mmtune.runtime.files import atomic_open

ROWS_AT_ONCE = 1 << 20
"""Number of rows for which labels are computed at a time."""
STRINGS = ("id", "group", "meta")
LEFT_OVER_SECONDS = 86_400


class _ColumnFiles:
    """Appends columns to files in a directory, one file per buffer of a column, and maps these files as Arrow arrays."""

    def __init__(self, folder: Path):
        self.folder, self.types = folder, dict[str, np.dtype]()
        self.ends: dict[str, int] = {}
        self.files = contextlib.ExitStack()
        self._open: dict[str, BinaryIO] = {}

    def _write(self, name: str, array: np.ndarray) -> None:
        if name not in self._open:
            self._open[name] = self.files.enter_context(open(self.folder / name, "wb"))
            self.types[name] = array.dtype
        self._open[name].write(array.tobytes())

    def add_numbers(self, name: str, array: np.ndarray) -> None:
        self._write(name, array)

    def add_strings(self, name: str, array: pa.Array) -> None:
        """Append strings: their bytes, the offsets of their ends, and whether they are not null."""
        array = array.cast(pa.large_string())
        _, offsets, data = array.buffers()
        at = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        end = self.ends.setdefault(name, 0)
        if name not in self._open:
            self._write(name, np.zeros(1, np.int64))
        self._write(name, at[1:] - at[0] + end)
        self._write(f"{name}.bytes", np.frombuffer(data or b"", np.uint8)[at[0] : at[-1]])
        self._write(f"{name}.valid", array.is_valid().to_numpy(zero_copy_only=False))
        self.ends[name] = end + int(at[-1] - at[0])

    def numbers(self, name: str, mode: str = "r") -> np.ndarray:
        return np.memmap(self.folder / name, self.types[name], mode)  # type: ignore[call-overload]

    def strings(self, name: str) -> pa.Array:
        offsets, valid = self.numbers(name), self.numbers(f"{name}.valid")
        data = pa.py_buffer(self.numbers(f"{name}.bytes") if self.ends[name] else b"")
        bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(pa.large_string(), len(valid), [bitmap, pa.py_buffer(offsets), data])


def combine(files: Sequence[ShardFile], tables: Callable[[], Iterable[pa.Table]], name: str, path: Path) -> pa.Table:
    """Combine the tables of all shards to one table; its schema metadata `notes` has the lines about what was skipped.

    files: the shards
    tables: function that reads the table of each shard, in order; it may be called twice
    name: name of the dataset, for messages
    path: file in the cache to which the table is written; if that is impossible, the table is in memory

    Raises DataError if there is no row, or if an id occurs twice.
    """
    keys_repeat = False
    while True:
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=writable_folder(path.parent)) as folder:
            columns = _ColumnFiles(Path(folder))
            with contextlib.closing(columns.files):
                notes, derived = _write_columns(columns, files, tables(), keys_repeat)
            if "shard" not in columns.types or not len(columns.numbers("shard")):
                raise DataError(f"{name}: no sample with a known modality ({'; '.join(notes) or 'the shards are empty'})")
            if _any_repeated(columns.numbers("id.label")):
                if derived and not keys_repeat:
                    keys_repeat = True  # rows without an id get SHARD/KEY as id
                    continue
                _refuse_repeated(columns, files)
            table = _finish(columns, notes)
            try:
                with atomic_open(path) as f, pa.ipc.new_file(f, table.schema) as writer:
                    writer.write_table(table)
            except OSError:  # continue without the cache if it cannot be written
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
                return pa.ipc.open_stream(sink.getvalue()).read_all()
            opened = open_combined(path)
            return opened if opened is not None else table


def writable_folder(folder: Path) -> Path | None:
    """The directory itself if it can be written to, else None, which means the system's directory of temporary files.

    Removes what processes that were killed have left in it a day ago or earlier.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left_over in folder.glob(".tmp-*"):
            if time.time() - left_over.stat().st_mtime > LEFT_OVER_SECONDS:
                shutil.rmtree(left_over, ignore_errors=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def open_combined(path: Path) -> pa.Table | None:
    """Map a combined table. None if the file does not exist or is not whole."""
    with contextlib.suppress(OSError, pa.ArrowException, ValueError):
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        if len(table) and all(column.num_chunks == 1 for column in table.columns):
            return table
    return None


def notes_of(table: pa.Table) -> list[str]:
    """What was skipped when the shards of a combined table were scanned, one line each."""
    return json.loads((table.schema.metadata or {}).get(b"notes", b"[]"))


def _write_columns(
    columns: _ColumnFiles, files: Sequence[ShardFile], tables: Iterable[pa.Table], keys_repeat: bool
) -> tuple[list[str], bool]:
    """Write the columns of all shards. Returns (lines about what was skipped, whether a row has no id of its own).

    keys_repeat: the id of a row without an id is SHARD/KEY instead of KEY
    """
    notes, any_derived = [], False
    for number, (file, table) in enumerate(zip(files, tables, strict=True)):
        for note, count in json.loads((table.schema.metadata or {}).get(b"notes", b"{}")).items():
            notes.append(f"{file.name}: {count} {note}")
        if not len(table):
            continue
        batch = table.combine_chunks().to_batches()[0]
        id_N, derived_N = batch["id.label"].to_numpy(), batch["id"].is_null().to_numpy(zero_copy_only=False)
        any_derived |= bool(derived_N.any())
        keys = batch["key"].cast(pa.large_string())
        if keys_repeat:
            keys = pc.binary_join_element_wise(pa.scalar(file.name, pa.large_string()), keys, pa.scalar("/", pa.large_string()))
            of_shard = np.full(len(id_N), stable_label(file.name.encode()), np.int64)
            id_N = np.where(derived_N, mix_labels(id_N, of_shard), id_N)
        columns.add_strings("id", pc.coalesce(batch["id"].cast(pa.large_string()), keys))
        columns.add_strings("group", batch["group"])
        columns.add_strings("meta", batch["meta"])
        columns.add_numbers("shard", np.full(len(batch), number, np.int32))
        columns.add_numbers("id.label", id_N)
        for name in [n for n in batch.schema.names if "." in n and n != "id.label"]:
            columns.add_numbers(name, batch[name].to_numpy())
    return notes, any_derived


def _any_repeated(label_N: np.ndarray) -> bool:
    label_N = np.sort(label_N)
    return bool((label_N[1:] == label_N[:-1]).any())


def _refuse_repeated(columns: _ColumnFiles, files: Sequence[ShardFile]) -> NoReturn:
    label_N, shard_N = columns.numbers("id.label"), columns.numbers("shard")
    order = np.argsort(label_N, kind="stable")
    at = np.flatnonzero(label_N[order][1:] == label_N[order][:-1])
    a, b = int(order[at[0]]), int(order[at[0] + 1])
    where = f"{files[shard_N[a]].url} and {files[shard_N[b]].url}"
    raise DataError(
        f"the id {columns.strings('id')[a].as_py()!r} is there twice ({where}; {len(at)} such rows); "
        "ids must be unique: pack again with --id COLUMN, or open the shards as separate datasets"
    )


def _finish(columns: _ColumnFiles, notes: list[str]) -> pa.Table:
    """Map the files of the columns as one table, with the final labels of the ids, and without modalities that no row has.

    The label of an id also depends on the content of the row, so that equal ids ("0001") of unrelated datasets have different labels.
    """
    id_N, content_N = columns.numbers("id.label", "r+"), columns.numbers("row.label")
    for start in range(0, len(id_N), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        id_N[part] = mix_labels(id_N[part], content_N[part])
    arrays: dict[str, pa.Array] = {name: columns.strings(name) for name in STRINGS}
    for name in ("shard", "id.label", "group.label", "row.label"):
        arrays[name] = pa.array(columns.numbers(name))
    for modality in modalities.names():
        size_N = columns.numbers(f"{modality}.size") if f"{modality}.size" in columns.types else np.zeros(0)
        present_N = size_N >= 0
        if present_N.any():
            for column in ("offset", "size", "field", "item", "label"):
                arrays[f"{modality}.{column}"] = pa.array(columns.numbers(f"{modality}.{column}"))
            arrays[f"{modality}.present"] = pa.array(present_N.view(np.uint8))
    return pa.table(arrays).replace_schema_metadata({"notes": json.dumps(notes)})
