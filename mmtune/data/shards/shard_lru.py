"""A cache of streamed shards on disk, of a given size. The shards that were used least recently are deleted first.

Several processes may share the directory. A shard is stored while it is read for the first time.
"""

import contextlib
import io
import os
import time
from pathlib import Path
from typing import BinaryIO, cast

from mmtune.data.remote.remote_files import cache_identity
from mmtune.data.remote.remote_stream import open_stream
from mmtune.data.shards import shard_cache
from mmtune.data.shards.remote_listing import shard_stamp
from mmtune.data.shards.shard_listing import ShardFile
from mmtune.runtime.work_lock import file_lock

PART = ".part-"
"""Start of the names of files that are being written."""
ABANDONED_SECONDS = 600
"""A file that is being written belongs to a killed process if it has not grown for this long."""


class ShardCache:
    """Opens shards, and keeps copies of remote ones in `directory`, at most `limit` bytes together. 0 means no copies."""

    def __init__(self, limit: int, directory: Path | None = None):
        self.limit, self.directory = limit, directory or shard_cache.root() / "streamed"
        self.hits = self.misses = 0

    def open(self, shard: ShardFile) -> BinaryIO:
        """Open a shard for reading from start to end."""
        if not shard.remote or not self.limit or shard.remote.startswith("pipe:"):
            return open_stream(shard.remote or shard.path)
        stamp, size = shard_stamp(shard)
        local = self.directory / shard_cache.copy_name(shard.remote, cache_identity(shard.remote), stamp)
        with contextlib.suppress(OSError):
            file = open(local, "rb")
            _mark_used(local)
            self.hits += 1
            return file
        self.misses += 1
        remote = open_stream(shard.remote)
        part = self._reserve(local, size) if size is not None else None
        return remote if part is None else cast(BinaryIO, _Tee(remote, part, local, size or 0))

    def _reserve(self, local: Path, size: int) -> Path | None:
        """Delete the least recently used shards until `size` bytes are free, and create the file to write to.

        Returns None if that is impossible: the shard is too large, other shards are being written, or the disk cannot be written.
        """
        if size > self.limit:
            return None
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with file_lock(self.directory / ".lock"):
                files = [(p.stat(), p) for p in self.directory.iterdir() if p.name != ".lock"]
                used = sum(s.st_size for s, _ in files)
                for stat, path in sorted(files, key=lambda f: (f[0].st_mtime_ns, f[1].name)):
                    if used + size <= self.limit:
                        break
                    if path.name.startswith(PART) and time.time() - stat.st_mtime < ABANDONED_SECONDS:
                        continue
                    path.unlink(missing_ok=True)
                    used -= stat.st_size
                if used + size > self.limit:
                    return None
                part = local.with_name(f"{PART}{os.getpid()}-{time.monotonic_ns()}-{local.name}")
                with open(part, "xb") as f:
                    f.truncate(size)  # counts as used from now on
                return part
        except OSError:
            return None


def _mark_used(path: Path) -> None:
    """Set the time of a file to now, exactly: the file system's own clock has steps of some milliseconds, in which shards are read."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


class _Tee(io.RawIOBase):
    """Reads `source`, writes what is read to `part`, and renames that file to `local` at the end."""

    def __init__(self, source: BinaryIO, part: Path, local: Path, size: int):
        self.source, self.part, self.local, self.size = source, part, local, size
        self._copy: BinaryIO | None = open(part, "rb+")

    def readable(self) -> bool:
        """True: the stream can be read."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read up to len(buffer) bytes into `buffer`; returns their number, 0 at the end of the file."""
        count = cast(io.BufferedReader, self.source).readinto(buffer)
        if self._copy is not None:
            try:
                self._copy.write(memoryview(buffer)[:count])
                if not count:
                    self._publish()
            except OSError:  # the disk is full: continue without the copy
                self._discard()
        return count

    def _publish(self) -> None:
        copy, self._copy = self._copy, None
        assert copy is not None
        complete = copy.tell() == self.size
        copy.close()
        if complete:
            _mark_used(self.part)
            os.replace(self.part, self.local)
        else:
            self.part.unlink(missing_ok=True)

    def _discard(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None:
            with contextlib.suppress(OSError):
                copy.close()
            self.part.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the source. A copy that is not complete is deleted."""
        if not self.closed:
            self._discard()
            self.source.close()
        super().close()
