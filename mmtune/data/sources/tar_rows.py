"""Read tar files (WebDataset shards) of other programs as a source of `mmtune pack`.

Packing checks their values and lets the user choose fields of their JSON as ids and groups.
"""

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.data.identity_labels import decode_name
from mmtune.data.shards import shard_cache, tar_index
from mmtune.data.shards.locate import locate
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.data.shards.tar_members import TarMembers
from mmtune.data.sources.tables import InvalidRow
from mmtune.data.sources.text_tables import file_digest
from mmtune.errors import DataError, DataWarning

Metadata = TypeVar("Metadata", list, dict)


def holds_tars(folder: Path) -> bool:
    """Whether a folder has tar files, and no media files, at its top level."""
    owner = modalities.by_extension()
    suffixes = {p.suffix.lower()[1:] for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")}
    return "tar" in suffixes and not any(s in owner and not modalities.get(owner[s]).language for s in suffixes)


class TarRows:
    """The rows of a tar file or of a folder of tar files.

    files: the tar files
    tables: the table of each tar file (see `tar_index.scan`)
    total: number of rows
    columns: the modalities, "id", "group", and all metadata fields. A metadata field that has the name of one of the others gets the
        column name `json.NAME`
    sha256: hash of the content of the tar files
    """

    def __init__(self, path: Path):
        """Scan the tar files. Of truncated or damaged ones, the samples that are whole are read.

        Issues a DataWarning if samples or values are skipped. Raises DataError if a file is not a readable tar file, or if there are
        no rows.
        """
        alone = ShardFile(path.stem, os.path.abspath(path), os.path.abspath(path))  # not checked against an index.json
        self.files = [alone] if path.is_file() else locate(str(path)).shards
        self.tables = [shard_cache.table(f.path, f.url, (f.entry or {}).get("sha256"), salvage=True) for f in self.files]
        self.total = sum(len(t) + len(_metadata(t, "cut samples", list)) for t in self.tables)
        notes = [
            f"{file.name}: truncated or damaged at byte {' and '.join(map(str, cuts))}: {len(table)} rows before and after it are "
            f"whole, {len(_metadata(table, 'cut samples', list))} cut samples are rejected; samples that are lost are not counted"
            for file, table in zip(self.files, self.tables, strict=True)
            if (cuts := _metadata(table, "cuts", list))
        ]
        notes += [
            f"{file.name}: {count} {note}"
            for file, table in zip(self.files, self.tables, strict=True)
            for note, count in _metadata(table, "notes", dict).items()
        ]
        if not any(map(len, self.tables)):
            raise DataError(f"{path}: no sample with a known modality ({'; '.join(notes) or 'the tars are empty'})")
        for note in notes:
            warnings.warn(note, DataWarning, stacklevel=4)
        digests = [file_digest(Path(f.path))[0] for f in self.files]
        self.sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        self.modalities = [n for n in modalities.names() if any((t[f"{n}.size"].to_numpy() >= 0).any() for t in self.tables)]
        self.reserved = {*self.modalities, "id", "group"}
        fields = dict.fromkeys(k for t in self.tables for meta in t["meta"].to_pylist() for k in self._meta(meta))
        self.columns = [*self.modalities, "id", "group", *fields]
        keys = Counter(key for t in self.tables for key in t["key"].to_pylist())
        self._keys_repeat = any(count > 1 for count in keys.values())

    def _meta(self, document: str) -> JsonObject:
        fields = json.loads(document) if document else {}
        return {f"json.{k}" if k in self.reserved else k: v for k, v in fields.items()}

    def read(self, wanted: set[str]) -> Iterator[JsonObject | InvalidRow]:
        """Yield the rows in order, with the values of the modalities in `wanted` only."""
        names = [n for n in self.modalities if n in wanted]
        for file, table in zip(self.files, self.tables, strict=True):
            yield from self._rows(file, table, names)
            for key in _metadata(table, "cut samples", list):
                yield InvalidRow(f"cut: {file.name}.tar ends or is damaged within the sample", decode_name(key))

    def _rows(self, file: ShardFile, table: pa.Table, names: list[str]) -> Iterator[JsonObject]:
        suffix_at = {
            span[0]: extension.rpartition(".")[2]
            for members in TarMembers(file.path, salvage=True).samples.values()
            for extension, span in members.items()
        }
        with open(file.path, "rb") as tar:
            for batch in table.to_batches(1024):
                for row in batch.to_pylist():
                    own_id = row["id"] or (f"{file.name}/{row['key']}" if self._keys_repeat else row["key"])
                    cells = {**self._meta(row["meta"]), "id": own_id, "group": row["group"]}
                    for name in names:
                        offset, size = row[f"{name}.offset"], row[f"{name}.size"]
                        if size < 0:
                            continue
                        tar.seek(offset)
                        data, field = tar.read(size), row[f"{name}.field"]
                        if field == tar_index.NO_FIELD:
                            cells[name] = {"bytes": data, "path": f"{row['key']}.{suffix_at[offset]}"}
                        else:
                            document = tar_index.parse_json(data)
                            field_name = modalities.get(name).json_fields[field]
                            cells[name] = tar_index.field_value(document, field_name, row[f"{name}.item"])
                    yield cells


def _metadata(table: pa.Table, name: str, empty: type[Metadata]) -> Metadata:
    """A JSON value of the schema metadata that `tar_index.scan` has written; an empty one if it is missing."""
    document = (table.schema.metadata or {}).get(name.encode())
    return empty() if document is None else json.loads(document)
