"""Samples -> shards: plain tar files whose bytes depend on nothing but the samples and the size limit."""

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypedDict

from mmtune.runtime.files import AtomicFile

if TYPE_CHECKING:
    from webdataset import TarWriter


class ShardEntry(TypedDict):
    """A shard's line in index.json."""

    name: str
    rows: int
    bytes: int
    sha256: str


def sample_size(members: Mapping[str, bytes]) -> int:
    """Bytes that a sample takes in a tar: a header block for each member, and its data in whole blocks."""
    block = tarfile.BLOCKSIZE
    return sum(block + -(-len(data) // block) * block for data in members.values())


class ShardWriter:
    """One shard being written by webdataset's TarWriter; it appears at `path`, whole, when it is closed.

    Creating the object writes nothing. So its owner keeps it before `open` creates a file, and can `abort` it at any moment.
    """

    def __init__(self, path: Path):
        self.path = path
        self.size = self.rows = 0
        self._file = AtomicFile(path)
        self._stream: _HashedStream | None = None
        self._tar: TarWriter | None = None

    def open(self) -> None:
        """Create the temporary file."""
        from webdataset import TarWriter  # imports torch: seconds, of which a source without one good row needs none

        self._stream = _HashedStream(self._file.open())
        # no time, owner or permission of this machine: equal samples give equal bytes
        self._tar = TarWriter(self._stream, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write one sample, {extension: bytes}; its members lie in the order of their extensions."""
        assert self._tar is not None, "add before open"
        self._tar.write({"__key__": key, **members})
        self.size += sample_size(members)
        self.rows += 1

    def close(self) -> ShardEntry:
        """Publish the shard and return its line for index.json."""
        assert self._tar is not None and self._stream is not None, "close before open"
        self._tar.close()
        self._file.commit()
        return {
            "name": self.path.name,
            "rows": self.rows,
            "bytes": self._stream.size,
            "sha256": self._stream.sha256.hexdigest(),
        }

    def abort(self) -> None:
        """Remove the temporary file. May be called at any time."""
        if self._stream is not None:
            self._stream.ignore_writes = True
        self._file.discard()


class _HashedStream:
    """The stream under a TarWriter: passes bytes on, counts and hashes them."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()
        self.ignore_writes = False  # tarfile's stream writes what it has buffered when it is garbage-collected

    def write(self, data: bytes) -> int:
        if not self.ignore_writes:
            self.file.write(data)
            self.sha256.update(data)
            self.size += len(data)
        return len(data)
