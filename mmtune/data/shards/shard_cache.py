"""An on-disk cache of downloaded shards and of the tables of scanned shards, in $MMTUNE_CACHE or ~/.cache/mmtune.

The cache may be deleted at any time. An entry is used only if the URL, size and time stamps of the shard are unchanged.
"""

import contextlib
import hashlib
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.data.remote.remote_files import download
from mmtune.data.remote.request_failures import public_url
from mmtune.data.shards import tar_index
from mmtune.errors import DataError
from mmtune.runtime.files import atomic_open, sha256_file


def root() -> Path:
    """The cache directory."""
    return Path(os.environ.get("MMTUNE_CACHE") or Path.home() / ".cache" / "mmtune")


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def copy_name(url: str, identity: str, stamp: str) -> str:
    """The file name of the local copy of a remote file; parameters as in `fetch`."""
    return f"{_key(identity, stamp)}-{public_url(url).rsplit('/', 1)[-1]}"


def copy_path(url: str, identity: str, stamp: str) -> Path:
    """The path of the local copy of a remote file; parameters as in `fetch`."""
    return root() / "shards" / copy_name(url, identity, stamp)


def table_copy(sha256: str) -> Path:
    """The path of the local copy of a remote table file with this hash."""
    return root() / "tables" / f"{_key(sha256)}.arrow"


def stamp_of_file(path: str | Path) -> list[int] | None:
    """What changes when a local file changes: size and time stamps; None if it does not exist."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def combined_table(*stamps: object) -> Path:
    """The path of the combined table of a dataset, for what it depends on (see `combine_tables`)."""
    return root() / "rows" / f"{_key(*stamps)}.arrow"


def fetch(url: str, identity: str, stamp: str, size: int | None) -> str:
    """Download a remote file unless it is in the cache, and return the path of the local copy.

    identity: what identifies the file (see `cache_identity`)
    stamp: a string that changes when the file changes
    size: its size in bytes; None if it is unknown

    Raises DataError if it cannot be read, or has another size.
    """
    local = copy_path(url, identity, stamp)
    if not (local.exists() and (size is None or local.stat().st_size == size)):
        download(url, local, size)
    return str(local)


def table(path: str, url: str, sha256: str | None = None, salvage: bool = False) -> pa.Table:
    """Return the table of a shard (see `tar_index.scan`) from the cache, or scan the shard if it is new or has changed.

    path: local file
    url: where the shard comes from
    sha256: expected hash from index.json, or None; it is checked when the file is scanned, not every time it is opened
    salvage: read what is whole of a truncated or damaged file

    Raises DataError if the hash differs.
    """
    stat = os.stat(path)
    key = _key(
        url, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sha256, tar_index.signature(), *(["salvage"] if salvage else [])
    )
    cached = root() / "tables" / f"{key}.parquet"
    with contextlib.suppress(OSError, pa.ArrowException):
        return pq.read_table(cached, memory_map=False)
    if sha256 and sha256_file(path) != sha256:
        raise DataError(f"{path}: its content differs from the SHA-256 in index.json; copy the file again, or pack again")
    result = tar_index.scan(path, salvage)
    with contextlib.suppress(OSError), atomic_open(cached) as f:  # continue without the cache if it cannot be written
        pq.write_table(result, f, compression="zstd")
    return result
