"""Open data that are given in memory: they are packed once, into a directory of the cache that is named by their content."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from mmtune.data.cached_packing import pack_once
from mmtune.data.shards.dataset import Data, open_data
from mmtune.data.sources.memory_rows import NAME, InMemory, is_in_memory, memory_source
from mmtune.errors import DataError

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
    from mmtune.data.pack.pack import pack

    def pack_into(out: Path) -> None:
        pack(data, out, columns=dict(columns or {}), id=id, group=group, max_rejected=1.0)

    identity = [memory_source(data).sha256, sorted((columns or {}).items()), id, group]
    return pack_once(NAME, FOLDER, identity, pack_into, MAX_REJECTED)
