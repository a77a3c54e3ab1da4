"""An on-disk cache of downloaded shards and of the tables of scanned shards, in $MMTUNE_CACHE or ~/.cache/mmtune.

The cache may be deleted at any time. An entry is used only if the URL, size and time stamps of the shard are unchanged.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.data.shards import tar_index
from mmtune.errors import DataError
from mmtune.runtime.files import atomic_open, sha256_file

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem


def root() -> Path:
    """The cache directory."""
    return Path(os.environ.get("MMTUNE_CACHE") or Path.home() / ".cache" / "mmtune")


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def fetch(fs: "AbstractFileSystem", url: str, path: str, info: Mapping[str, object]) -> str:
    """Download a remote file unless it is in the cache, and return the path of the local copy.

    fs, path: fsspec filesystem and path of the file
    url: URL of the file
    info: what `fs.info(path)` returns

    Raises DataError if fewer bytes than expected arrive.
    """
    stamps = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "md5Hash")
    time = next((info[k] for k in stamps if info.get(k)), "")
    stamp = str(time.timestamp() if hasattr(time, "timestamp") else time)  # `fs.ls` may return seconds, `fs.info` a datetime
    size = info.get("size")
    local = root() / "shards" / f"{_key(url, size, stamp)}-{url.rsplit('/', 1)[-1]}"
    if not (local.exists() and (size is None or local.stat().st_size == size)):
        with fs.open(path, "rb") as remote, atomic_open(local) as f:
            shutil.copyfileobj(remote, f, 1 << 20)
            if size is not None and f.tell() != size:
                raise DataError(f"{url}: got {f.tell()} of {size} bytes; run it again")
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
