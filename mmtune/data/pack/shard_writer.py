"""Write samples into a shard, a plain tar file. Its bytes are reproducible: they depend only on the samples."""

import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NotRequired, TypedDict

from mmtune.data.shards.shard_table import write_table
from mmtune.runtime.files import AtomicFile

if TYPE_CHECKING:
    from webdataset import TarWriter


class ShardEntry(TypedDict):
    """The entry of a shard in index.json.

    table_bytes, table_sha256: size and hash of its table file (see `shard_table`); missing in packs of older versions
    """

    name: str
    rows: int
    bytes: int
    sha256: str
    table_bytes: NotRequired[int]
    table_sha256: NotRequired[str]


def sample_size(members: Mapping[str, bytes]) -> int:
    """The number of bytes of a sample in a tar file: per member one header block, and its data rounded up to whole blocks."""
    block = tarfile.BLOCKSIZE
    return sum(block + -(-len(data) // block) * block for data in members.values())


class ShardWriter:
    """Writes one shard with webdataset's TarWriter. The file is published at `path` atomically when the writer is closed, and then
    its table beside it.

    The constructor creates no file, only `open` does. The caller can therefore store the object first, and `abort` it at any time.
    """

    def __init__(self, path: Path):
        self.path = path
        self.size = self.rows = 0
        self._file = AtomicFile(path)
        self._stream: _HashedStream | None = None
        self._tar: TarWriter | None = None

    def open(self) -> None:
        """Create the temporary file."""
        from webdataset import TarWriter  # here, because it imports torch, which takes seconds

        self._stream = _HashedStream(self._file.open())
        # fixed times, owners and permissions, so that equal samples give equal bytes
        self._tar = TarWriter(self._stream, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False)

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write one sample. Its members are written in the order of their extensions.

        key: name of the sample in the tar file
        members: file extension -> bytes
        """
        assert self._tar is not None, "add before open"
        self._tar.write({"__key__": key, **members})
        self.size += sample_size(members)
        self.rows += 1

    def close(self) -> ShardEntry:
        """Publish the shard and its table, and return its entry for index.json."""
        assert self._tar is not None and self._stream is not None, "close before open"
        self._tar.close()
        self._file.commit()
        table_bytes, table_sha256 = write_table(self.path)
        return {
            "name": self.path.name,
            "rows": self.rows,
            "bytes": self._stream.size,
            "sha256": self._stream.sha256.hexdigest(),
            "table_bytes": table_bytes,
            "table_sha256": table_sha256,
        }

    def abort(self) -> None:
        """Remove the temporary file. May be called at any time."""
        if self._stream is not None:
            self._stream.ignore_writes = True
        self._file.discard()


class _HashedStream:
    """A stream for TarWriter that writes to a file, and counts and hashes the bytes."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()
        self.ignore_writes = False  # set on abort, because tarfile's stream writes its buffer when it is garbage-collected

    def write(self, data: bytes) -> int:
        if not self.ignore_writes:
            self.file.write(data)
            self.sha256.update(data)
            self.size += len(data)
        return len(data)
