"""One shard -> one table of its samples: the only code that knows how samples lie in a tar, whether mmtune or another program wrote it.

A sample is all members of a tar with the same key: the path up to the first dot of its last part, as webdataset has it.
What follows that dot is the member's extension, which gives its role:

- a modality's own extension: that modality's bytes. Several of one modality: the first in the order of its
  `extensions`. Of a compound extension (`left.png`) the last part counts, and only if the sample has nothing better.
- `json`: an object with `id`, `group` and metadata. mmtune nests the metadata under `meta`; in any other file every
  other field is metadata, and a modality without a member may take its value from one of its `json_fields` (of a list
  the first).
- `cls`: a class number or name, kept as the metadata `cls`.

Anything else is ignored. A value that is empty, or has no content key of its modality, counts as absent.
"""

import json
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Mapping
from hashlib import blake2b
from typing import BinaryIO, TypeAlias

import pyarrow as pa

from mmtune import modalities
from mmtune.contracts import JsonObject, Modality
from mmtune.data.identity_labels import stable_label
from mmtune.errors import DataError, Rejected
from mmtune.runtime.files import open_for_read_at, read_at

SCAN_VERSION = 2
MAX_LINKS = 8
NO_FIELD = -1
"""In a `<modality>.field` column: the value is a member of its own, not a field of the .json member."""
Span: TypeAlias = tuple[int, int]
"""(offset, size) of bytes in the tar."""
Members: TypeAlias = dict[str, Span]
"""Extension -> where the member's bytes lie."""
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


def signature() -> list[object]:
    """What a scan depends on besides the tar's bytes; a cached table with another signature is not used."""
    return [SCAN_VERSION, *([n, modalities.TABLE[n], *_scanned_traits(modalities.get(n))] for n in modalities.names())]


def _scanned_traits(modality: Modality) -> list[list[str]]:
    return [list(modality.extensions), list(modality.json_fields)]


class TarMembers:
    """Where the members of a tar's samples lie. samples: key -> members, in the order the keys first appear; notes: what was left
    out -> how often.

    Archives written one after the other (`cat a.tar b.tar`) are all read. Hard and symbolic links are the member that they name.
    """

    def __init__(self, path: str):
        """Raises DataError naming the file when it is compressed, no tar, truncated, damaged, or holds a member twice."""
        self.path, self.size = path, os.path.getsize(path)
        self.samples: dict[str, Members] = {}
        self.notes: Counter[str] = Counter()
        self._links: list[tuple[str, str]] = []  # (name, name of its target)
        with open(path, "rb") as f:
            head = f.read(8)
            for magic, kind in _COMPRESSED.items():
                if head.startswith(magic):
                    raise DataError(
                        f"{path}: {kind}-compressed; rows are read at random, so decompress it to a plain .tar first"
                    )
            start: int | None = 0
            while start is not None:
                end = self._read_archive(f, start)
                start = self._next_archive(f, end)
        self._resolve_links()

    def _read_archive(self, file: BinaryIO, start: int) -> int:
        """Read one archive; the offset of the block after its last member."""
        end = start
        file.seek(start)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    end = tar.offset
                    tar.members = []  # type: ignore[attr-defined]  # else a shard of a million members keeps a million headers
                    self._add(member)
        except (tarfile.TarError, EOFError, OverflowError) as e:
            what = "no tar file" if not end else f"truncated or damaged after byte {end}"
            raise DataError(f"{self.path}: {what} ({e}); copy or write it again") from None
        # tarfile takes a broken header for the end of the archive: rows after it would be lost without a word
        file.seek(end)
        last = file.read(tarfile.BLOCKSIZE)
        if len(last) < tarfile.BLOCKSIZE or any(last):
            what = "truncated" if len(last) < tarfile.BLOCKSIZE else "damaged"
            raise DataError(f"{self.path}: {what} at byte {end}, no end mark there; copy or write it again")
        return end

    def _next_archive(self, file: BinaryIO, end: int) -> int | None:
        """Where another archive starts after the end mark at `end`; None when there are only zeros."""
        file.seek(end)
        offset = end
        while block := file.read(1 << 20):
            if block.count(0) < len(block):
                first = next(i for i, byte in enumerate(block) if byte)
                return offset + first // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            offset += len(block)
        return None

    def _add(self, member: tarfile.TarInfo) -> None:
        if member.islnk():
            self._links.append((member.name, member.linkname))
        elif member.issym():
            self._links.append((member.name, posixpath.join(posixpath.dirname(member.name), member.linkname)))
        elif member.issparse():  # its bytes do not lie in one piece
            self.notes["sparse members, left out"] += 1
        elif member.isreg():
            if member.offset_data + member.size > self.size:
                raise DataError(f"{self.path}: truncated inside {member.name}; copy or write it again")
            self._add_span(member.name, (member.offset_data, member.size))

    def _add_span(self, name: str, span: Span) -> None:
        key, extension = _sample_key(name)
        if key and extension:
            members = self.samples.setdefault(key, {})
            if extension in members:
                raise DataError(f"{self.path}: the member {name} is there twice; give every sample its own key")
            members[extension] = span

    def _resolve_links(self) -> None:
        targets = dict(self._links)
        for name, target in self._links:
            for _ in range(MAX_LINKS):  # a link to a link
                target = posixpath.normpath(target)
                target = targets.get(target, target)
            key, extension = _sample_key(target)
            if span := self.samples.get(key, {}).get(extension):
                self._add_span(name, span)
            elif _sample_key(name)[1]:
                self.notes["links to something that is not in the tar, left out"] += 1


def _sample_key(name: str) -> tuple[str, str]:
    """(key, extension) of a member; ("", "") for one that belongs to no sample."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or base.startswith("__"):
        return "", ""
    return folder + slash + stem, extension.lower()


def find_value(members: Members, owner: dict[str, str], name: str, extensions: tuple[str, ...]) -> Span | None:
    """Where the value of modality `name` lies in a sample, or None. owner: extension -> modality."""
    for extension in extensions:
        if extension in members and owner[extension] == name:
            return members[extension]
    compound = [e for e in members if e not in owner and "." in e and owner.get(e.rpartition(".")[2]) == name]
    return members[min(compound, key=lambda e: (extensions.index(e.rpartition(".")[2]), e))] if compound else None


def field_value(document: object, field: str) -> bytes:
    """A modality's value in a field of a .json member, as bytes; of a list the first; b"" when there is none."""
    value = document.get(field) if isinstance(document, dict) else None
    if isinstance(value, list):
        value = value[0] if value else None
    return value.encode("utf-8", "replace") if isinstance(value, str) and value.strip() else b""


def _identity(document: object, used: set[str]) -> tuple[str | None, str | None, JsonObject]:
    """(id, group, metadata) of a .json member; used: the fields that became a modality's value."""
    if not isinstance(document, dict):
        return None, None, {} if document is None else {"json": document}
    fields = {k: v for k, v in document.items() if k not in ("id", "group")}
    nested = set(document) <= {"id", "group", "meta"} and isinstance(document.get("meta"), dict)
    meta = document["meta"] if nested else {k: v for k, v in fields.items() if k not in used or not isinstance(v, str)}
    return _string(document.get("id")), _string(document.get("group")), meta


def _string(value: object) -> str | None:
    return None if value is None or isinstance(value, dict | list) or str(value) == "" else str(value)


class _TableBuilder:
    """The table of a shard under construction: a list for each column."""

    def __init__(self) -> None:
        self.known = {n: modalities.get(n) for n in modalities.names()}
        self.owner = modalities.by_extension()
        self.lists: dict[str, list[object]] = {
            k: [] for k in ("key", "id", "group", "meta", "id.label", "group.label", "row.label")
        }
        self.lists |= {f"{n}.{k}": [] for n in self.known for k in ("offset", "size", "field", "label")}
        self.notes: Counter[str] = Counter()

    def add(self, fd: int, key: str, members: Members) -> None:
        """Add one sample; a sample without any modality is left out, with a note."""
        row_hash = blake2b(key.encode("utf-8", "replace"), digest_size=8)
        document = None
        if "json" in members:
            data = _read(fd, members["json"])
            row_hash.update(b"json" + blake2b(data).digest())
            try:
                document = json.loads(data)
            except ValueError:
                self.notes[".json members that are not JSON"] += 1
        values: dict[str, tuple[int, int, int, int]] = {}
        used: set[str] = set()
        for name, modality in self.known.items():
            if value := self._value(fd, name, modality, members, document, row_hash):
                values[name] = value
                used |= {modality.json_fields[value[2]]} if value[2] != NO_FIELD else set()
        if unused := self._unused_values(members, values):
            self.notes["members left out: their sample (a key ends at the first dot) has another of that kind"] += unused
        if not values:
            self.notes["samples without any known modality"] += 1
            return
        id, group, meta = _identity(document, used)
        if "cls" in members:
            name = _read(fd, members["cls"]).decode("utf-8", "replace").strip()
            row_hash.update(b"cls" + name.encode())
            meta = {"cls": int(name) if name.lstrip("-").isdecimal() else name, **meta}
        packed = json.dumps(meta, ensure_ascii=False) if meta else ""
        for column, cell in (("key", key), ("id", id), ("group", group), ("meta", packed)):
            # JSON may spell half a surrogate pair, which no UTF-8 can hold
            self.lists[column].append(None if cell is None else cell.encode("utf-8", "replace").decode())
        self.lists["id.label"].append(stable_label((id or key).encode("utf-8", "replace")))
        self.lists["group.label"].append(stable_label(group.encode("utf-8", "replace")) if group else 0)
        self.lists["row.label"].append(int.from_bytes(row_hash.digest(), "little") >> 1 or 1)
        for name in self.known:
            for k, v in zip(("offset", "size", "field", "label"), values.get(name, (0, -1, NO_FIELD, 0)), strict=True):
                self.lists[f"{name}.{k}"].append(v)

    def _unused_values(self, members: Members, values: Mapping[str, tuple[int, int, int, int]]) -> int:
        """How many members of a modality are not their sample's value of it."""
        spans = {value[:2] for value in values.values()}
        return sum(self.owner.get(e.rpartition(".")[2]) in values and span not in spans for e, span in members.items())

    def _value(
        self, fd: int, name: str, modality: Modality, members: Members, document: object, row_hash: blake2b
    ) -> tuple[int, int, int, int] | None:
        """(offset, size, field, label) of one modality of a sample, or None where it has no usable value."""
        span = find_value(members, self.owner, name, modality.extensions)
        field = NO_FIELD
        data = _read(fd, span) if span else b""
        if span is None:
            field = next((i for i, f in enumerate(modality.json_fields) if field_value(document, f)), NO_FIELD)
            if field == NO_FIELD:
                return None
            span, data = members["json"], field_value(document, modality.json_fields[field])
        try:
            if not data:
                raise Rejected("empty")
            label = stable_label(modality.content_key(data))
        except Rejected as e:
            self.notes[f"{name} values left out: {e}"] += 1
            return None
        if field == NO_FIELD:
            row_hash.update(name.encode() + blake2b(data).digest())
        return *span, field, label

    def finish(self) -> pa.Table:
        """The finished table."""
        kinds = {"key": pa.string(), "id": pa.string(), "group": pa.string(), "meta": pa.string()}
        arrays = {
            k: pa.array(v, kinds.get(k, pa.int8() if k.endswith(".field") else pa.int64())) for k, v in self.lists.items()
        }
        return pa.table(arrays).replace_schema_metadata({"notes": json.dumps(self.notes)})


def _read(fd: int, span: Span) -> bytes:
    return read_at(fd, span[1], span[0])


def scan(path: str) -> pa.Table:
    """The table of a shard, one row a sample: key, id and group (null when absent), meta (JSON), labels, and where each modality's bytes lie.

    Columns: `key id group meta`, `id.label group.label row.label` (row.label: everything in the sample), and for each
    known modality `.offset .size .field .label`, size -1 where the row lacks it. Schema metadata `notes`: what was left out.
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
