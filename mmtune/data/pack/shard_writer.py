"""Samples -> shards: plain tars whose bytes depend on nothing but the samples and the size limit."""

import contextlib
import hashlib
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from mmtune.runtime.files import atomic_open

BLOCK = tarfile.BLOCKSIZE


def header(name: str, size: int) -> bytes:
    """A tar header with nothing in it that changes from run to run."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode, info.uid, info.gid = size, 0, 0o644, 0, 0
    return info.tobuf(tarfile.GNU_FORMAT)


def room(members: list[tuple[str, bytes]]) -> int:
    """Bytes that a sample takes in a tar."""
    return sum(BLOCK + -(-len(data) // BLOCK) * BLOCK for _, data in members)


class ShardWriter:
    """One shard being written; it appears at `path` when closed, whole."""

    def __init__(self, path: Path):
        self.path = path
        self._context: contextlib.AbstractContextManager[BinaryIO] = atomic_open(path)
        self._file = self._context.__enter__()
        self._sha = hashlib.sha256()
        self.bytes = self.rows = 0

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha.update(data)
        self.bytes += len(data)

    def add(self, key: str, members: list[tuple[str, bytes]]) -> None:
        """One sample: its members, (extension, bytes), in order."""
        for extension, data in members:
            self._write(header(f"{key}.{extension}", len(data)))
            self._write(data)
            self._write(bytes(-len(data) % BLOCK))
        self.rows += 1

    def close(self) -> dict[str, Any]:
        """Publish the shard; its line for index.json."""
        end = 2 * BLOCK
        self._write(bytes(end + -(self.bytes + end) % tarfile.RECORDSIZE))
        self._context.__exit__(None, None, None)
        return {"name": self.path.name, "rows": self.rows, "bytes": self.bytes, "sha256": self._sha.hexdigest()}

    def abort(self) -> None:
        """Leave nothing behind."""
        error = RuntimeError("aborted")
        with contextlib.suppress(RuntimeError):
            self._context.__exit__(RuntimeError, error, None)
