"""One shard -> one table of its rows: the only code that knows how rows lie in a tar, whether mmtune or another program wrote it.

A sample is the members of one key (`tar_members`); what follows the key is a member's extension, which gives its role:

- a modality's own extension: that modality's bytes. Several of one modality: the first in the order of its
  `extensions`. Of a compound extension (`left.png`) the last part counts, and only if the sample has nothing better.
- `json`: an object with `id`, `group` and metadata. mmtune nests the metadata under `meta`; in any other file every
  other field is metadata, and a modality without a member may take its value from one of its `json_fields`. A list there is
  several values: each becomes a row (ids KEY, KEY#2, ...) with the sample's other values, all of one group.
- `cls`: a class number or name, kept as the metadata `cls`.

Anything else is ignored. A value that is empty, or has no content key of its modality, counts as absent.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from hashlib import blake2b

import pyarrow as pa

from mmtune import modalities
from mmtune.contracts import JsonObject, Modality
from mmtune.data.identity_labels import identity_string, shared_group, stable_label
from mmtune.data.list_values import pair_lists
from mmtune.data.shards.tar_members import DOCUMENTS, Members, Span, TarMembers, find_value
from mmtune.errors import Rejected
from mmtune.runtime.files import open_for_read_at, read_at

SCAN_VERSION = 3
NO_FIELD = -1
"""In a `<modality>.field` column: the value is a member of its own, not a field of the .json member."""
NO_ITEM = -1
"""In a `<modality>.item` column: the field is a single value, not a list."""


def signature() -> list[object]:
    """What a scan depends on besides the tar's bytes; a cached table with another signature is not used."""
    return [SCAN_VERSION, *([n, modalities.TABLE[n], *_scanned_traits(modalities.get(n))] for n in modalities.names())]


def _scanned_traits(modality: Modality) -> list[list[str]]:
    return [list(modality.extensions), list(modality.json_fields)]


def parse_json(data: bytes) -> object:
    """A JSON document, in which NaN and infinite numbers (which other programs' writers spell, and JSON does not know) are null.
    Raises ValueError."""

    def finite(number: str) -> float | None:
        return value if math.isfinite(value := float(number)) else None

    try:
        return json.loads(data, parse_constant=lambda _: None, parse_float=finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def field_value(document: object, field: str, item: int = NO_ITEM) -> bytes:
    """A modality's value in a field of a .json member, as bytes; b"" when there is none. item: its position where the field is a
    list."""
    value = document.get(field) if isinstance(document, dict) else None
    if item != NO_ITEM:
        value = value[item] if isinstance(value, list) and item < len(value) else None
    return value.encode("utf-8", "replace") if isinstance(value, str) and value.strip() else b""


def _items(document: object, field: str) -> list[int]:
    """The positions of the values in a field that is a list, [NO_ITEM] for a single value, [] where there is none."""
    value = document.get(field) if isinstance(document, dict) else None
    items = range(len(value)) if isinstance(value, list) else [NO_ITEM]
    return [i for i in items if field_value(document, field, i)]


def _identity(document: object, used: set[str]) -> tuple[str | None, str | None, JsonObject]:
    """(id, group, metadata) of a .json member; used: the fields that became a modality's value."""
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


@dataclass(frozen=True)
class _Value:
    """One value of a modality. field: of its json_fields, NO_FIELD for a member of its own; item: its position in a list there."""

    offset: int = 0
    size: int = -1
    field: int = NO_FIELD
    item: int = NO_ITEM
    label: int = 0


_NO_VALUE = _Value()
_VALUE_COLUMNS = [f.name for f in fields(_Value)]


class _TableBuilder:
    """The table of a shard under construction: a list for each column."""

    def __init__(self) -> None:
        self.known = {n: modalities.get(n) for n in modalities.names()}
        self.owner = modalities.by_extension()
        self.lists: dict[str, list[object]] = {
            k: [] for k in ("key", "id", "group", "meta", "id.label", "group.label", "row.label")
        }
        self.lists |= {f"{n}.{c}": [] for n in self.known for c in _VALUE_COLUMNS}
        self.notes: Counter[str] = Counter()

    def add(self, fd: int, key: str, members: Members) -> None:
        """Add the rows of one sample; a sample without any modality is left out, with a note."""
        key = identity_string(key) or key
        row_hash = blake2b(key.encode("utf-8", "replace"), digest_size=8)
        document = None
        if "json" in members:
            data = _read(fd, members["json"])
            row_hash.update(b"json" + blake2b(data).digest())
            try:
                document = parse_json(data)
            except ValueError:
                self.notes[".json members that are not JSON"] += 1
        values: dict[str, list[_Value]] = {}
        used: set[str] = set()
        for name, modality in self.known.items():
            if of_modality := self._values(fd, name, modality, members, document, row_hash):
                values[name] = of_modality
                used |= {modality.json_fields[v.field] for v in of_modality if v.field != NO_FIELD}
        self._count_unused(members, values)
        if not values:
            self.notes["samples without any known modality"] += 1
            return
        id, group, meta = _identity(document, used)
        if "cls" in members:
            name = _read(fd, members["cls"]).decode("utf-8", "replace").strip()
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
        """Add row `number` (from 1) of a sample. content: the hash of everything in the sample."""
        if number > 1:
            key, id = f"{key}#{number}", id and f"{id}#{number}"
            content = blake2b(content + b"#%d" % number, digest_size=8).digest()
        packed = json.dumps(meta, ensure_ascii=False) if meta else ""
        for column, cell in (("key", key), ("id", id), ("group", group), ("meta", packed)):
            # JSON may spell half a surrogate pair, which no UTF-8 can hold
            self.lists[column].append(None if cell is None else cell.encode("utf-8", "replace").decode())
        self.lists["id.label"].append(stable_label((id or key).encode("utf-8", "replace")))
        self.lists["group.label"].append(stable_label(group.encode("utf-8", "replace")) if group else 0)
        self.lists["row.label"].append(int.from_bytes(content, "little") >> 1 or 1)
        for name in self.known:
            value = values.get(name, _NO_VALUE)
            for column in _VALUE_COLUMNS:
                self.lists[f"{name}.{column}"].append(getattr(value, column))

    def _count_unused(self, members: Members, values: Mapping[str, list[_Value]]) -> None:
        """Note members of a modality that are not their sample's value of it, and .json and .cls members that are not read."""
        spans = {(v.offset, v.size) for of_modality in values.values() for v in of_modality}
        for extension, span in members.items():
            suffix = extension.rpartition(".")[2]
            if self.owner.get(suffix) in values and span not in spans:
                self.notes["members left out: their sample (a key ends at the first dot) has another of that kind"] += 1
            elif suffix in DOCUMENTS and suffix != extension:
                self.notes[f".{suffix} members left out: a key ends at the first dot, and their name has two"] += 1

    def _values(
        self, fd: int, name: str, modality: Modality, members: Members, document: object, row_hash: blake2b
    ) -> list[_Value]:
        """The usable values of one modality of a sample: of a member one, of a field of the .json member one or several."""
        if span := find_value(members, self.owner, name, modality.extensions):
            data = _read(fd, span)
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
        """The value with its content label; None, and a note, where it cannot be used."""
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

    def finish(self) -> pa.Table:
        """The finished table."""
        strings = ("key", "id", "group", "meta")
        small = {"field": pa.int8(), "item": pa.int32()}
        types = {k: pa.string() if k in strings else small.get(k.rpartition(".")[2], pa.int64()) for k in self.lists}
        arrays = {k: pa.array(v, types[k]) for k, v in self.lists.items()}
        return pa.table(arrays).replace_schema_metadata({"notes": json.dumps(self.notes)})


def _read(fd: int, span: Span) -> bytes:
    return read_at(fd, span[1], span[0])


def scan(path: str) -> pa.Table:
    """The table of a shard, one row a sample, or several for lists: key, id and group (null when absent), meta (JSON), labels, and where each modality's bytes lie.

    Columns: `key id group meta`, `id.label group.label row.label` (row.label: everything in the sample), and for each
    known modality `.offset .size .field .item .label`, size -1 where the row lacks it. Schema metadata `notes`: what was left out.
    """
    table = _TableBuilder()
    fd = open_for_read_at(path)
    try:
        members = TarMembers(path)
        table.notes += members.notes
        for key, of_sample in members.samples.items():
            table.add(fd, key, of_sample)
    finally:
        os.close(fd)
    return table.finish()
