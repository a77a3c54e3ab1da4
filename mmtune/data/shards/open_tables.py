"""Open the row table of a dataset. Neither local tar files that `mmtune pack` has written nor remote ones are read for it.

The table of a shard comes from the file beside the shard (see `shard_table`), else from the cache, else from a scan of the shard. Of
remote shards only the table files are fetched. The combined table is kept in the cache under a key of the stamps of all shards.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from mmtune.data.shards import combine_tables, shard_cache, tar_index
from mmtune.data.shards.remote_listing import fetch_shards, fetch_table, in_parallel, local_copy
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.data.shards.shard_table import decode_table, table_name
from mmtune.errors import DataError

VERSION = 1  # increase it when the combined table of unchanged shards changes
READERS, AHEAD = 4, 16
"""Threads that read tables, and number of tables that are read ahead."""


def open_row_table(files: Sequence[ShardFile], name: str) -> pa.Table:
    """Open the combined table of all shards (see `combine_tables`), from the cache if no shard has changed.

    files: the shards; the `path` of remote ones is set, and those without a table file are fetched
    name: name of the dataset, for messages

    Raises DataError if a shard is missing or damaged, if it differs from index.json, or if an id occurs twice.
    """
    remote = [f for f in files if f.remote]
    fetch_shards([f for f in remote if not _has_table(f)])
    for file in remote:
        file.path = file.path or local_copy(file)
    path = shard_cache.combined_table(VERSION, tar_index.signature(), [_stamp(f) for f in files])
    table = combine_tables.open_combined(path)
    if table is None:
        in_parallel(fetch_table, [f for f in remote if _has_table(f)])
        table = combine_tables.combine(files, lambda: _in_order(files), name, path)
    return table


def stored_table(file: ShardFile) -> pa.Table | None:
    """The table file that `mmtune pack` has written beside a shard; None if there is none, or if it is not that of the shard.

    Of a remote shard it is fetched into the cache. Raises DataError as `fetch_table`.
    """
    if not _has_table(file):
        return None
    if file.remote:
        fetch_table(file)
    return _table_beside(file)


def _has_table(file: ShardFile) -> bool:
    return file.entry is not None and "table_sha256" in file.entry


def _table_path(file: ShardFile) -> Path:
    """The local path of the table file of a shard."""
    if file.remote:
        return shard_cache.table_copy((file.entry or {})["table_sha256"])
    return Path(file.path).with_name(table_name(Path(file.path).name))


def _stamp(file: ShardFile) -> list[object]:
    """What changes when the table of a shard changes."""
    entry = file.entry or {}
    hashes = [entry.get("sha256"), entry.get("table_sha256")]
    if file.remote and _has_table(file):
        return [file.name, *hashes, file.path]
    beside = shard_cache.stamp_of_file(_table_path(file)) if _has_table(file) else None
    return [file.name, file.url, *hashes, shard_cache.stamp_of_file(file.path), beside]


def _in_order(files: Sequence[ShardFile]) -> Iterator[pa.Table]:
    """Yield the table of each shard, in order. Threads read a limited number of tables ahead."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="mmtune-tables") as pool:
        pending: deque[Future[pa.Table]] = deque()
        rest = iter(files)
        try:
            while True:
                while len(pending) < AHEAD and (file := next(rest, None)) is not None:
                    pending.append(pool.submit(_shard_table, file))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _shard_table(file: ShardFile) -> pa.Table:
    """The table of a shard: from its table file if that is whole and not older than the shard, else by a scan."""
    if _has_table(file) and (table := _table_beside(file)) is not None:
        return table
    fetch_shards([file] if file.remote and not os.path.exists(file.path) else [])
    table = shard_cache.table(file.path, file.url, (file.entry or {}).get("sha256"))
    if file.entry and file.entry["rows"] != len(table):
        raise DataError(f"{file.url}: {len(table)} rows, index.json says {file.entry['rows']}; copy it again, or pack again")
    return table


def _table_beside(file: ShardFile) -> pa.Table | None:
    path = _table_path(file)
    try:
        # a tar that was written after its table may have been changed: it is compared with the hash in index.json
        if not file.remote and os.stat(file.path).st_mtime_ns > os.stat(path).st_mtime_ns:
            return None
        return decode_table(path.read_bytes(), file.entry or {})
    except OSError:
        return None
