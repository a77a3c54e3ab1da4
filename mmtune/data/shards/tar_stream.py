"""Read the samples of a tar file from its start to its end, without random access and without a scan beforehand.

As webdataset requires, the members of a sample must follow each other. Rows get the same ids, groups and labels as rows that are
opened by `open_data` from a set whose keys do not repeat.
"""

import io
import json
import math
import tarfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from mmtune import modalities
from mmtune.data.identity_labels import decode_name, mix_label
from mmtune.data.shards.stream_keys import keyed_members
from mmtune.data.shards.tar_index import NO_FIELD, TableBuilder, field_value, parse_json
from mmtune.data.shards.tar_members import Span
from mmtune.errors import DataError

READ_BYTES = 1 << 16
"""Number of bytes that tarfile reads at once."""
CHECK_BLOCK = 1 << 20
ROW_BYTES, VALUE_BYTES = 750, 80
"""What a row, and each of its values, takes in memory besides its bytes and strings (measured, CPython 3.11)."""


@dataclass(slots=True)
class StreamedRow:
    """A row of a streamed shard.

    id, group: as in `Row`
    values: modality -> encoded bytes
    labels: "id", "group" and each known modality -> identity label; 0 means that the row has no such value
    place: (number of the shard in the epoch, number of the row in the shard)
    meta: the metadata, as JSON text; "" if there are none
    """

    id: str
    group: str | None
    values: dict[str, bytes]
    labels: dict[str, int]
    place: tuple[int, int] = (0, 0)
    meta: str = ""

    @property
    def size(self) -> int:
        """The bytes of memory that the row takes, estimated from its contents alone, so that it is the same everywhere."""
        values = sum(map(len, self.values.values())) + VALUE_BYTES * len(self.values)
        return ROW_BYTES + values + sum(len(t) * (1 if t.isascii() else 4) for t in (self.id, self.group or "", self.meta))

    def keep_columns(self, columns: Sequence[str]) -> None:
        """Forget the metadata but for some columns."""
        meta = json.loads(self.meta) if columns and self.meta else {}
        kept = {name: meta[name] for name in columns if name in meta}
        self.meta = json.dumps(kept) if kept else ""

    def numbers(self, columns: Mapping[str, str]) -> list[float]:
        """The values of numeric metadata columns; NaN where the row has none. columns: {name: recipe key and data, for the error}

        Raises DataError for a value that is not a number.
        """
        meta = json.loads(self.meta) if self.meta else {}
        return [number_of(meta.get(name), name, key, self.id) for name, key in columns.items()]


def number_of(value: object, column: str, key: str, row: str) -> float:
    """The value of a numeric metadata column as a number; NaN for None and "". Raises DataError, which names key, column and row."""
    if value in (None, ""):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]  # any JSON value
    except (TypeError, ValueError):
        raise DataError(f"{key}: column {column!r} of row {row!r} is {value!r}, not a number") from None


class _Tail(io.RawIOBase):
    """Passes reads on to `file`, counts the bytes, and keeps the last ones."""

    def __init__(self, file: BinaryIO):
        self.file, self.count = file, 0
        self._chunks: deque[bytes] = deque(maxlen=3)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes."""
        data = self.file.read(size)
        self.count += len(data)
        if data:
            self._chunks.append(data)
        return data

    @property
    def last(self) -> bytes:
        """The last bytes that were read, at least READ_BYTES if there are as many."""
        return b"".join(self._chunks)


def _members(file: BinaryIO, url: str, notes: Counter[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the regular files of a tar file. Raises DataError if it is damaged or truncated."""
    tail, end = _Tail(file), 0
    try:
        with tarfile.open(fileobj=tail, mode="r|", bufsize=READ_BYTES, encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep the headers of all members in memory
                if member.isreg():
                    content = tar.extractfile(member)
                    yield decode_name(member.name), content.read() if content else b""
                elif member.islnk() or member.issym():
                    notes["links, left out: a streamed tar file has no random access"] += 1
                end = tar.offset
    except (tarfile.TarError, EOFError, OverflowError) as e:
        what = "not a tar file" if not end else f"truncated or damaged after byte {end}"
        raise DataError(f"{url}: {what} ({e}); copy or write it again") from None
    _check_end(tail, end, url)


def _check_end(tail: _Tail, end: int, url: str) -> None:
    """Check that the block at `end` is the end mark, and that only zeros follow. Reads the file to its end."""
    last = tail.last
    after = last[max(0, end - (tail.count - len(last))) :]
    if len(after) < tarfile.BLOCKSIZE or any(after[: tarfile.BLOCKSIZE]):
        what = "truncated" if len(after) < tarfile.BLOCKSIZE else "damaged"
        raise DataError(f"{url}: {what} at byte {end}, where the end mark should be; copy or write it again")
    while after:
        if after.count(0) < len(after):
            raise DataError(f"{url}: another archive follows the end mark; write it as a single tar file to stream it")
        after = tail.read(CHECK_BLOCK)


def _samples(file: BinaryIO, url: str, notes: Counter[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (key, {extension: content}) for each run of members with the same key."""
    current, members = "", dict[str, bytes]()
    for key, extension, name, data in keyed_members(_members(file, url, notes), url):
        if key != current:
            if members:
                yield current, members
            current, members = key, {}
        if extension in members:
            raise DataError(f"{url}: contains the member {name} twice; give every sample a key of its own")
        members[extension] = data
    if members:
        yield current, members


def stream_rows(file: BinaryIO, url: str, notes: Counter[str], table: TableBuilder | None = None) -> Iterator[StreamedRow]:
    """Yield the rows of an opened tar file in order.

    url: the public name of the file, for messages
    notes: gets the counts of what is skipped
    table: gets the columns of the rows that `scan` finds in the file, before each is yielded; offsets of values mean nothing in them

    Raises DataError if the file is not a tar file, truncated or damaged.
    """
    builder = TableBuilder()
    builder.notes = notes
    for key, members in _samples(file, url, notes):
        contents = list(members.values())
        spans = {extension: (i, len(data)) for i, (extension, data) in enumerate(members.items())}
        builder.add(partial(_content, contents), key, spans)
        for row in builder.take_rows():
            if table is not None:
                table.append(row)
            yield _streamed_row(row, contents)


def _content(contents: list[bytes], span: Span) -> bytes:
    return contents[span[0]]


def _streamed_row(row: dict[str, object], contents: list[bytes]) -> StreamedRow:
    values: dict[str, bytes] = {}
    labels = {"id": mix_label(_number(row["id.label"]), _number(row["row.label"])), "group": _number(row["group.label"])}
    for name in modalities.names():
        labels[name] = _number(row[f"{name}.label"])
        if _number(row[f"{name}.size"]) >= 0:
            kind, field = modalities.get(name), _number(row[f"{name}.field"])
            data = contents[_number(row[f"{name}.offset"])]
            if field != NO_FIELD:
                data = field_value(parse_json(data), kind.json_fields[field], _number(row[f"{name}.item"]))
            values[name] = kind.reencode(data)[0]
    id, group = row["id"] or row["key"], row["group"]
    return StreamedRow(str(id), None if group is None else str(group), values, labels, meta=str(row["meta"] or ""))


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
