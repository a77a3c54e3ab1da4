"""Read index.json, which `mmtune pack` writes beside the shards, and check that it can be used."""

from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.runtime.format_number import check_format

KIND, SPLIT_KIND = "mmtune-shards", "mmtune-splits"
"""Values of the key `kind` in index.json: for a directory of shards, and for a directory with one subdirectory per split."""


FORMAT = 1
"""The format number of packed data; index.json has it under the key `schema`."""


def is_kind(index: object, kind: str) -> bool:
    """Whether a parsed index.json is of this kind. An index.json of another program is of no kind."""
    return isinstance(index, dict) and index.get("kind") == kind


def checked_index(index: object, path: str) -> JsonObject | None:
    """Return a parsed index.json, or None if another program has written it.

    path: where it is, for the message

    Raises DataError if `mmtune pack` has written it and a key that is needed is missing or of another type.
    """
    if not isinstance(index, dict) or not (is_kind(index, KIND) or is_kind(index, SPLIT_KIND)):
        return None
    check_format(index.get("schema"), FORMAT, path, DataError, missing=1)
    if is_kind(index, KIND):
        shards, columns = index.get("shards"), index.get("columns", {})
        if not isinstance(shards, list) or not all(is_shard_entry(s) for s in shards):
            wrong = "shards"
        elif len({s["name"] for s in shards}) < len(shards):
            wrong = "shards"
        else:
            wrong = "" if isinstance(columns, dict) else "columns"
    else:
        splits = index.get("splits")
        valid = isinstance(splits, dict) and all(_is_file_name(n) and isinstance(s, dict) for n, s in splits.items())
        wrong = "" if valid else "splits"
    if wrong:
        raise DataError(f"{path}: the key {wrong!r} is damaged or missing; copy the file again, or pack again")
    return index


def is_shard_entry(entry: object) -> bool:
    """Whether a value has all keys of an entry of index.json for a shard (`shard_writer.ShardEntry`)."""
    return (
        isinstance(entry, dict)
        and _is_file_name(entry.get("name"))
        and isinstance(entry.get("sha256"), str)
        and all(type(entry.get(k)) is int and entry[k] >= 0 for k in ("rows", "bytes"))
        and isinstance(entry.get("table_sha256", ""), str)
        and type(entry.get("table_bytes", 0)) is int
    )


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and name.isprintable() and Path(name).name == name
