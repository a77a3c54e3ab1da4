"""Read Parquet files, and Arrow files as the library `datasets` stores them, as one table.

Numbers of a ClassLabel feature of Hugging Face become the names of the classes.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mmtune.data.sources.text_tables import file_digest
from mmtune.errors import DataError

if TYPE_CHECKING:
    from pyarrow import DataType, RecordBatch, Schema

BATCH_ROWS = 64  # rows that are in memory at once; small, because a row may contain whole media files
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"  # how Hive writes a missing value in a folder name
SPLIT = "split"


class ArrowFiles:
    """The rows of Parquet or Arrow files.

    columns: the columns of all files, those of Hive partitions, and "split" if there are splits
    total: number of rows
    sha256: hash of the content of the files
    untyped: columns that come from names of folders, whose cells are strings
    adds_split_column: whether the column "split" comes from `splits`
    """

    def __init__(self, files: list[Path], folder: Path, splits: Mapping[Path, str]):
        """Read the schemas. Raises DataError, which names the file, if one cannot be read.

        splits: file -> its split, which becomes the column "split" unless the files have a column of that name
        """
        self.files, self.total = files, 0
        self.types: dict[str, DataType] = {}
        self.classes: dict[Path, dict[str, list[str]]] = {}
        for file in files:
            schema, rows = self._schema(file)
            self.types |= {c.name: c.type for c in schema}
            self.total += rows
            self.classes[file] = class_names(schema)
        self.adds_split_column = bool(splits) and SPLIT not in self.types
        self._of_file: dict[Path, dict[str, str]] = {file: _hive_partitions(file.relative_to(folder)) for file in files}
        if self.adds_split_column:
            for file, split in splits.items():
                self._of_file[file] = {SPLIT: split, **self._of_file[file]}
        by_folders = {c for of_file in self._of_file.values() for c in of_file}
        self.columns = list(dict.fromkeys([*self.types, *sorted(by_folders)]))
        self.untyped = frozenset(by_folders - self.types.keys())
        digests = [file_digest(f)[0] for f in files]
        self.sha256 = digests[0] if len(files) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def _schema(self, file: Path) -> "tuple[Schema, int]":
        import pyarrow.parquet as pq

        try:
            if file.suffix.lower() != ".arrow":
                with pq.ParquetFile(file) as f:
                    return f.schema_arrow, f.metadata.num_rows
            batches = _arrow_batches(file)
            schema, _ = next(batches)
            return schema, sum(batch.num_rows for _, batch in batches if batch is not None)
        except Exception as e:  # on damaged files pyarrow raises almost anything, SystemError too
            kind = "Arrow" if file.suffix.lower() == ".arrow" else "Parquet"
            raise DataError(f"{file}: not a readable {kind} file ({_first_line(e)})") from None

    def read(self, wanted: set[str]) -> Iterator[dict[str, object]]:
        """Yield the rows in order, without the columns of bytes that are not in `wanted`."""

        names = [c for c, t in self.types.items() if c in wanted or not _holds_bytes(t)]
        for file in self.files:
            classes = self.classes[file]
            try:
                for batch in self._batches(file, names):
                    for row in batch.to_pylist():
                        for column, of_column in classes.items():
                            if column in row:
                                row[column] = _named(row[column], of_column)
                        yield {**self._of_file[file], **row}
            except Exception as e:  # on damaged files pyarrow raises almost anything, SystemError too
                raise DataError(f"{file}: damaged ({_first_line(e)}); write it again") from None

    def _batches(self, file: Path, names: list[str]) -> "Iterator[RecordBatch]":
        import pyarrow.parquet as pq

        if file.suffix.lower() != ".arrow":
            with pq.ParquetFile(file) as f:
                yield from f.iter_batches(BATCH_ROWS, columns=[n for n in names if n in f.schema_arrow.names])
            return
        for schema, batch in _arrow_batches(file):
            if batch is not None:
                few = batch.select([n for n in names if n in schema.names])
                yield from (few.slice(start, BATCH_ROWS) for start in range(0, few.num_rows, BATCH_ROWS))


def class_names(schema: "Schema") -> dict[str, list[str]]:
    """{column: names of its classes} of the ClassLabel features that `datasets` has written into the metadata of a schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        while isinstance(feature, dict) and "feature" in feature:  # a list of class labels
            feature = feature["feature"]
        names = feature.get("names") if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" else None
        if isinstance(names, list):
            found[column] = [str(n) for n in names]
    return found


def _named(cell: object, names: list[str]) -> object:
    """The name of a class number, or of each number of a list; None for the number -1, which means "no label"."""
    if isinstance(cell, list):
        return [_named(c, names) for c in cell]
    if not isinstance(cell, int):
        return cell
    return names[cell] if 0 <= cell < len(names) else None if cell == -1 else cell


def _arrow_batches(file: Path) -> "Iterator[tuple[Schema, RecordBatch | None]]":
    """Yield (schema, None), then (schema, record batch) for each batch of an Arrow file in the stream or the file format."""
    import pyarrow as pa

    with contextlib.ExitStack() as stack:
        source = stack.enter_context(pa.memory_map(str(file)))
        try:
            stream = stack.enter_context(pa.ipc.open_stream(source))
        except pa.ArrowInvalid:
            source.seek(0)
            random_access = stack.enter_context(pa.ipc.open_file(source))
            yield random_access.schema, None
            for i in range(random_access.num_record_batches):
                yield random_access.schema, random_access.get_batch(i)
            return
        yield stream.schema, None
        for batch in stream:
            yield stream.schema, batch


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _hive_partitions(file: Path) -> dict[str, str]:
    """Read columns from the names of a file's folders, as Hive writes them.

    For example, `category=boots/part-0.parquet` gives {"category": "boots"}.
    """
    pairs = (part.partition("=") for part in file.parent.parts if "=" in part)
    return {unquote(name): unquote(value) for name, _, value in pairs if value != HIVE_NULL}


def _holds_bytes(kind: "DataType") -> bool:
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    if t.is_list(kind) or t.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind)
