"""Scan a shard, written by mmtune or by another program, into a table of its rows.

A sample consists of all tar members (files in the tar) with the same key; see `tar_members`. The extension of a member decides what
it is:

- An extension of a modality: the value of that modality. If there are several members of a modality, the first in the order of
  `Modality.extensions` is used. A compound extension such as `left.png` counts as `png`, but only if no other member matches.
- `json`: an object with the keys `id`, `group` and metadata. mmtune writes the metadata under the key `meta`. In files of other
  programs all other keys are metadata. If a modality has no member, its value is taken from one of its `json_fields`. If that
  field is a list, each of its values becomes a row (ids KEY, KEY#2, ...) with the other values of the sample; these rows get a
  common group.
- `cls`: a class number or name, which becomes the metadata column `cls`.

All other members are ignored. A value counts as missing if it is empty, or if its modality cannot compute a content key for it.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import TypeAlias

import pyarrow as pa

from mmtune import modalities
from mmtune.contracts import JsonObject, Modality
from mmtune.data.identity_labels import identity_string, shared_group, stable_label
from mmtune.data.list_values import pair_lists
from mmtune.data.shards.tar_members import DOCUMENTS, Members, Span, TarMembers, find_value
from mmtune.errors import Rejected
from mmtune.runtime.files import open_for_read_at, read_at

SCAN_VERSION = 3  # increase it when the table of an unchanged tar file changes, so that cached tables are not used any more
NO_FIELD = -1
"""Value of a column `<modality>.field` that means: the value is a tar member of its own, not a field of the .json member."""
NO_ITEM = -1
"""Value of a column `<modality>.item` that means: the field contains a single value, not a list."""


def signature() -> list[object]:
    """Everything other than the tar file on which the result of `scan` depends. It is a part of the cache key of tables."""
    return [SCAN_VERSION, *([n, modalities.TABLE[n], *_scanned_traits(modalities.get(n))] for n in modalities.names())]


def _scanned_traits(modality: Modality) -> list[list[str]]:
    return [list(modality.extensions), list(modality.json_fields)]


def parse_json(data: bytes) -> object:
    """Parse a JSON document. NaN and infinite numbers, which some programs write although JSON forbids them, become None.

    Raises ValueError if the document is not valid JSON.
    """

    def finite(number: str) -> float | None:
        return value if math.isfinite(value := float(number)) else None

    try:
        return json.loads(data, parse_constant=lambda _: None, parse_float=finite)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def field_value(document: object, field: str, item: int = NO_ITEM) -> bytes:
    """Return the value of a modality in a field of a .json member, as bytes; b"" if there is none.

    document: the parsed .json member
    field: name of the field
    item: position of the value if the field is a list, else NO_ITEM
    """
    value = document.get(field) if isinstance(document, dict) else None
    if item != NO_ITEM:
        value = value[item] if isinstance(value, list) and item < len(value) else None
    return value.encode("utf-8", "replace") if isinstance(value, str) and value.strip() else b""


def _items(document: object, field: str) -> list[int]:
    """The positions of the non-empty values in a field that is a list; [NO_ITEM] for a single value; [] if there is no value."""
    value = document.get(field) if isinstance(document, dict) else None
    items = range(len(value)) if isinstance(value, list) else [NO_ITEM]
    return [i for i in items if field_value(document, field, i)]


def _identity(document: object, used: set[str]) -> tuple[str | None, str | None, JsonObject]:
    """Return (id, group, metadata) of a .json member.

    document: the parsed .json member
    used: fields whose values are values of a modality and therefore not metadata
    """
    if not isinstance(document, dict):
        return None, None, {} if document is None else {"json": document}
    fields = {k: v for k, v in document.items() if k not in ("id", "group")}
    nested = set(document) <= {"id", "group", "meta"} and isinstance(document.get("meta"), dict)
    meta = document["meta"] if nested else {k: v for k, v in fields.items() if k not in used}
    id, group = (document.get(k) for k in ("id", "group"))
    return (
        None if isinstance(id, dict | list) else identity_string(id),
        None if isinstance(group, dict | list) else identity_string(group),
        meta,
    )


ReadSpan: TypeAlias = Callable[[Span], bytes]
"""Function that returns the bytes at a position of a tar file."""


@dataclass(frozen=True)
class _Value:
    """Where the value of a modality is stored.

    offset, size: position in the tar file of the member that contains the value; size -1 means that there is no value
    field: index of the field in `Modality.json_fields`; NO_FIELD if the value is a member of its own
    item: position in the list in that field, or NO_ITEM
    label: content label
    """

    offset: int = 0
    size: int = -1
    field: int = NO_FIELD
    item: int = NO_ITEM
    label: int = 0


_NO_VALUE = _Value()
_VALUE_COLUMNS = [f.name for f in fields(_Value)]


class TableBuilder:
    """Builds the table of a shard, with one Python list per column."""

    def __init__(self) -> None:
        self.known = {n: modalities.get(n) for n in modalities.names()}
        self.owner = modalities.by_extension()
        self.lists: dict[str, list[object]] = {
            k: [] for k in ("key", "id", "group", "meta", "id.label", "group.label", "row.label")
        }
        self.lists |= {f"{n}.{c}": [] for n in self.known for c in _VALUE_COLUMNS}
        self.notes: Counter[str] = Counter()

    def add(self, read: ReadSpan, key: str, members: Members) -> None:
        """Add the rows of one sample; `read` returns the bytes at a position in `members`. A sample without a value of any modality is skipped and counted in `notes`."""
        key = identity_string(key) or key
        row_hash = blake2b(key.encode("utf-8", "replace"), digest_size=8)
        document = None
        if "json" in members:
            data = read(members["json"])
            row_hash.update(b"json" + blake2b(data).digest())
            try:
                document = parse_json(data)
            except ValueError:
                self.notes[".json members that are not JSON"] += 1
        values: dict[str, list[_Value]] = {}
        used: set[str] = set()
        for name, modality in self.known.items():
            if of_modality := self._values(read, name, modality, members, document, row_hash):
                values[name] = of_modality
                used |= {modality.json_fields[v.field] for v in of_modality if v.field != NO_FIELD}
        self._count_unused(members, values)
        if not values:
            self.notes["samples without any known modality"] += 1
            return
        id, group, meta = _identity(document, used)
        if "cls" in members:
            name = read(members["cls"]).decode("utf-8", "replace").strip()
            row_hash.update(b"cls" + name.encode())
            meta = {"cls": int(name) if name.lstrip("-").isdecimal() else name, **meta}
        rows, uneven = pair_lists(values)
        if uneven:
            self.notes[f"samples of which only the first values are rows: {uneven}"] += 1
        if len(rows) > 1 and group is None:
            group = shared_group(id or key, row_hash.digest())
        for number, row in enumerate(rows, 1):
            self._add_row(number, key, id, group, meta, row, row_hash.digest())

    def _add_row(
        self,
        number: int,
        key: str,
        id: str | None,
        group: str | None,
        meta: JsonObject,
        values: Mapping[str, _Value],
        content: bytes,
    ) -> None:
        """Add one row of a sample.

        number: number of the row among the rows of the sample, from 1
        values: modality -> value
        content: hash of the content of the whole sample
        """
        if number > 1:
            key, id = f"{key}#{number}", id and f"{id}#{number}"
            content = blake2b(content + b"#%d" % number, digest_size=8).digest()
        packed = json.dumps(meta, ensure_ascii=False) if meta else ""
        for column, cell in (("key", key), ("id", id), ("group", group), ("meta", packed)):
            # "replace", because JSON can contain half of a surrogate pair, which UTF-8 cannot encode
            self.lists[column].append(None if cell is None else cell.encode("utf-8", "replace").decode())
        self.lists["id.label"].append(stable_label((id or key).encode("utf-8", "replace")))
        self.lists["group.label"].append(stable_label(group.encode("utf-8", "replace")) if group else 0)
        self.lists["row.label"].append(int.from_bytes(content, "little") >> 1 or 1)
        for name in self.known:
            value = values.get(name, _NO_VALUE)
            for column in _VALUE_COLUMNS:
                self.lists[f"{name}.{column}"].append(getattr(value, column))

    def _count_unused(self, members: Members, values: Mapping[str, list[_Value]]) -> None:
        """Count in `notes` the members that have a known extension but are not used."""
        spans = {(v.offset, v.size) for of_modality in values.values() for v in of_modality}
        for extension, span in members.items():
            suffix = extension.rpartition(".")[2]
            if self.owner.get(suffix) in values and span not in spans:
                self.notes["members left out: their sample (a key ends at the first dot) has another of that kind"] += 1
            elif suffix in DOCUMENTS and suffix != extension:
                self.notes[f".{suffix} members left out: a key ends at the first dot, and their name has two"] += 1

    def _values(
        self, read: ReadSpan, name: str, modality: Modality, members: Members, document: object, row_hash: blake2b
    ) -> list[_Value]:
        """Find the usable values of one modality in a sample: one from a member, or one or several from a field of the .json member."""
        if span := find_value(members, self.owner, name, modality.extensions):
            data = read(span)
            value = self._labelled(name, modality, data, _Value(*span))
            if value is None:
                return []
            row_hash.update(name.encode() + blake2b(data).digest())
            return [value]
        for number, field in enumerate(modality.json_fields):
            if items := _items(document, field):
                made = [
                    self._labelled(name, modality, field_value(document, field, i), _Value(*members["json"], number, i))
                    for i in items
                ]
                return [v for v in made if v]
        return []

    def _labelled(self, name: str, modality: Modality, data: bytes, value: _Value) -> _Value | None:
        """Return the value with its content label set. If it cannot be used, count it in `notes` and return None."""
        try:
            if not data:
                raise Rejected("empty")
            data, changed = modality.reencode(data)
            if changed:
                self.notes[f"{name} values {changed}"] += 1
            return replace(value, label=stable_label(modality.content_key(data)))
        except Rejected as e:
            self.notes[f"{name} values left out: {e}"] += 1
            return None

    def take_rows(self) -> list[dict[str, object]]:
        """Return the rows that were added since the last call, each as column -> value, and remove them from the table."""
        rows = [dict(zip(self.lists, values, strict=True)) for values in zip(*self.lists.values(), strict=True)]
        for values in self.lists.values():
            values.clear()
        return rows

    def __len__(self) -> int:
        return len(self.lists["key"])

    def take_table(self) -> pa.Table:
        """Return the table of the rows that were added since the last call (see `finish`), and remove them."""
        table = self.finish([], [])
        for values in self.lists.values():
            values.clear()
        return table

    def append(self, row: Mapping[str, object]) -> None:
        """Append a row that `take_rows` of another builder has returned."""
        for column, value in row.items():
            self.lists[column].append(value)

    def finish(self, cuts: list[int], cut_samples: list[str]) -> pa.Table:
        """Convert the lists to an Arrow table."""
        strings = ("key", "id", "group", "meta")
        small = {"field": pa.int8(), "item": pa.int32()}
        types = {k: pa.string() if k in strings else small.get(k.rpartition(".")[2], pa.int64()) for k in self.lists}
        arrays = {k: pa.array(v, types[k]) for k, v in self.lists.items()}
        return pa.table(arrays).replace_schema_metadata(
            {"notes": json.dumps(self.notes), "cuts": json.dumps(cuts), "cut samples": json.dumps(cut_samples)}
        )


def scan(path: str, salvage: bool = False) -> pa.Table:
    """Scan a shard into a table with one row per sample, or several if the sample has lists of values.

    Columns of the table:
        key: key of the sample
        id, group: null if the sample has none
        meta: metadata as a JSON string
        id.label, group.label: identity labels of id (or key) and group
        row.label: label of the content of the whole sample
        MODALITY.offset, .size, .field, .item, .label: for each known modality, where its value is stored (see `_Value`)

    salvage: read what is whole of a truncated or damaged file; the schema metadata `cuts` has the offsets of the damage, and
        `cut samples` the keys of the samples that are not whole

    The schema metadata `notes` counts what was skipped. Raises DataError if the file is not a readable tar file.
    """
    table = TableBuilder()
    fd = open_for_read_at(path)
    try:
        members = TarMembers(path, salvage)
        table.notes += members.notes
        for key, of_sample in members.samples.items():
            table.add(lambda span: read_at(fd, span[1], span[0]), key, of_sample)
    finally:
        os.close(fd)
    return table.finish(members.cuts, members.cut_samples)
