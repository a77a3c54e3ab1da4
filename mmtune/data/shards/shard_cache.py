"""The cache of DATA between runs: fetched shards, and the tables of scanned ones, under $MMTUNE_CACHE or ~/.cache/mmtune.

Everything in it can be deleted at any time. An entry is used only if URL, size and time stamps are the same.
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
    """The local copy of a remote file, fetched once. info: fsspec's `info(path)`. Raises DataError when the transfer is cut short."""
    stamps = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created", "md5Hash")
    time = next((info[k] for k in stamps if info.get(k)), "")
    stamp = str(time.timestamp() if hasattr(time, "timestamp") else time)  # a listing may give seconds, `info` a datetime
    size = info.get("size")
    local = root() / "shards" / f"{_key(url, size, stamp)}-{url.rsplit('/', 1)[-1]}"
    if not (local.exists() and (size is None or local.stat().st_size == size)):
        with fs.open(path, "rb") as remote, atomic_open(local) as f:
            shutil.copyfileobj(remote, f, 1 << 20)
            if size is not None and f.tell() != size:
                raise DataError(f"{url}: got {f.tell()} of {size} bytes; run it again")
    return str(local)


def table(path: str, url: str, sha256: str | None = None) -> pa.Table:
    """The table of the shard at `path` (see `tar_index.scan`), from the cache when the file has not changed since.

    sha256: from index.json; it is checked when the file is scanned, not each time it is opened.
    """
    stat = os.stat(path)
    key = _key(url, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, sha256, tar_index.signature())
    cached = root() / "tables" / f"{key}.parquet"
    with contextlib.suppress(OSError, pa.ArrowException):
        return pq.read_table(cached, memory_map=False)
    if sha256 and sha256_file(path) != sha256:
        raise DataError(f"{path}: its bytes are not those index.json was written for; copy it or pack again")
    result = tar_index.scan(path)
    with contextlib.suppress(OSError), atomic_open(cached) as f:  # a cache that cannot be written is no reason to stop
        pq.write_table(result, f, compression="zstd")
    return result
