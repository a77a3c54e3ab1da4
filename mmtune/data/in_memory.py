"""Open data that are given in memory: they are packed once, into a directory of the cache that is named by their content."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from mmtune.data.shards import shard_cache
from mmtune.data.shards.dataset import Data, open_data
from mmtune.data.sources.memory_rows import NAME, InMemory, is_in_memory, memory_source
from mmtune.errors import DataError, DataWarning
from mmtune.runtime.files import read_json, read_jsonl
from mmtune.runtime.work_lock import file_lock

FOLDER = "in_memory"
"""Directory in the cache for packed data."""
MAX_REJECTED = 0.05
"""Largest fraction of rows that may be unusable."""
DataLike: TypeAlias = object
"""What public functions take as data: opened data, packed shards by name (see `open_data`), or rows in memory: a list of dicts, a
dict of lists, a pandas DataFrame, a pyarrow Table or a `datasets.Dataset`."""


def as_opened(
    data: DataLike, *, columns: Mapping[str, str] | None = None, id: str | None = None, group: str | None = None
) -> Data:
    """Return the data, opened.

    data: opened data, a path, pattern or URL (see `open_data`), or rows in memory: a list of dicts, a dict of lists, a pandas
        DataFrame, a pyarrow Table or a `datasets.Dataset`
    columns: for rows in memory: modality -> column; columns with usual names are found
    id, group: for rows in memory: columns with the ids and groups of the rows; usual names are found

    Raises DataError if the data cannot be used, or if `columns`, `id` or `group` are given for data that are not in memory.
    """
    if is_in_memory(data):
        return open_data(str(pack_in_cache(data, columns=columns, id=id, group=group)))
    if columns or id or group:
        raise DataError("columns, id and group are for rows in memory; packed data have their ids and groups already")
    if isinstance(data, str | os.PathLike) or (isinstance(data, list | tuple) and all(isinstance(d, str) for d in data)):
        return open_data(data)
    if not hasattr(data, "labels"):
        raise DataError(
            f"data: a {type(data).__name__}; give shards, opened data, a list of dicts, a pandas DataFrame, a pyarrow Table or a "
            "datasets.Dataset"
        )
    return data  # type: ignore[return-value]


def pack_in_cache(
    data: InMemory, *, columns: Mapping[str, str] | None = None, id: str | None = None, group: str | None = None
) -> Path:
    """Pack rows in memory, unless that was done before with the same content, and return the directory.

    Issues a DataWarning if rows are rejected. Raises DataError if more than a twentieth is.
    """
    from mmtune.data.pack.pack import ROW_RULES, SCHEMA, pack

    source = memory_source(data)
    key = json.dumps([SCHEMA, ROW_RULES, source.sha256, sorted((columns or {}).items()), id, group])
    out = shard_cache.root() / FOLDER / hashlib.sha256(key.encode()).hexdigest()[:32]
    out.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(out.with_suffix(".lock")):  # the processes of a distributed run give the same data
        if not (out / "index.json").exists():
            pack(data, out, columns=dict(columns or {}), id=id, group=group, max_rejected=1.0)
    index = read_json(out / "index.json")
    if index["rejected"]:
        first = read_jsonl(out / "rejected.jsonl")[0]
        line = f"{NAME}: {index['rejected']} of {index['rows']} rows cannot be used (row {first['row']}: {first['reason']})"
        if index["rejected"] > MAX_REJECTED * index["rows"]:
            raise DataError(f"{line}; repair them or leave them out")
        warnings.warn(line, DataWarning, stacklevel=3)
    return out
