"""Read a file from its start to its end: a local file, a remote file, or the output of a command (`pipe:COMMAND`).

A remote file whose connection breaks is opened again and read on from the same byte.
"""

import bz2
import gzip
import io
import lzma
from typing import Any, BinaryIO, cast

from mmtune.data.remote.file_systems import file_system
from mmtune.data.remote.remote_files import HTML_BYTES, STREAMED, one_line_errors, refuse_html
from mmtune.data.remote.request_failures import Truncated, public_url
from mmtune.data.remote.retry import retry
from mmtune.errors import DataError, MissingExtra, first_line

BLOCK = 8 << 20
"""Bytes that are requested at once from servers that give ranges of a file (S3, GCS, the Hugging Face Hub)."""
BUFFER = 1 << 20
"""Bytes of a file that are buffered in memory."""


class RemoteStream(io.RawIOBase):
    """A remote file, read once from its start to its end.

    Errors are DataErrors of one line. Raises DataError if the file changes while it is read.
    """

    def __init__(self, url: str):
        self.url, self.position = url, 0
        self._fs, self._path = file_system(url)
        self._is_http = self._path.startswith("http")
        self._file: Any = None
        self._stamp: str | None = None

    def readable(self) -> bool:
        """True: the stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to len(buffer) bytes into `buffer`; returns their number, 0 at the end of the file."""
        with one_line_errors(self.url):
            data = retry(lambda: self._read(len(buffer)), self.url)
        if not self.position:
            refuse_html(self.url, data[:HTML_BYTES], lambda: str(self._file.r.url) if self._is_http else "")
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def _read(self, size: int) -> bytes:
        try:
            if self._file is None:
                self._open()
            data: bytes = self._file.read(size)
            return data
        except BaseException:
            self._close_file()
            raise

    def _open(self) -> None:
        """Open the file at the current position."""
        if not self._is_http:
            file = self._fs.open(self._path, "rb", block_size=BLOCK, cache_type="readahead")
            file.seek(self.position)
            self._file = file
            return
        headers = {"headers": {"Range": f"bytes={self.position}-"}} if self.position else {}
        file = self._fs.open(self._path, "rb", **STREAMED, **headers)
        response = file.r
        stamp = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        if self._stamp not in (None, stamp):
            raise DataError(f"{public_url(self.url)}: changed while it was read; start again")
        self._stamp, self._file = stamp, file
        to_skip = self.position if response.status != 206 else 0
        while to_skip:  # a server that ignores Range
            data = file.read(min(to_skip, BUFFER))
            if not data:
                raise Truncated(f"ended before byte {self.position}")
            to_skip -= len(data)

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except Exception:  # noqa: S110 - a broken connection may fail to close
                pass

    def close(self) -> None:
        """Close the connection."""
        self._close_file()
        super().close()


def open_stream(url: str) -> BinaryIO:
    """Open a local file, a URL or `pipe:COMMAND` for reading from start to end. Raises DataError if it does not exist."""
    if url.startswith("pipe:"):
        return cast(BinaryIO, PipeStream(url))
    if "://" in url:
        return io.BufferedReader(RemoteStream(url), BUFFER)
    try:
        return open(url, "rb")
    except OSError as e:
        raise DataError(f"{url}: {e.strerror}") from None


class PipeStream(io.RawIOBase):
    """The standard output of the shell command in `pipe:COMMAND`. Raises DataError if the command fails."""

    def __init__(self, url: str):
        from webdataset.gopen import gopen

        self.url, self._pipe = url, gopen(url)

    def readable(self) -> bool:
        """True: the stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to len(buffer) bytes into `buffer`; returns their number, 0 at the end of the output."""
        data = self._pipe.stream.read(len(buffer))
        buffer[: len(data)] = data
        if not data and (status := self._pipe.proc.wait()):
            raise DataError(f"{self.url}: the command failed with exit status {status}")
        return len(data)

    def close(self) -> None:
        """End the command if it still runs."""
        if not self.closed:
            self._pipe.stream.close()
            if self._pipe.proc.poll() is None:
                self._pipe.proc.terminate()
            self._pipe.proc.wait()
        super().close()


class _Decompressed(io.RawIOBase):
    """The output of a decompressor. Damage is a DataError of one line, not the exception of the library."""

    def __init__(self, file: Any, url: str):
        self.file, self.url, self.count = file, url, 0

    def readable(self) -> bool:
        """True: the stream can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to len(buffer) bytes into `buffer`; returns their number, 0 at the end."""
        try:
            data = self.file.read(len(buffer))
        except DataError:
            raise
        except Exception as e:  # EOFError, zlib.error, LZMAError, ZstdError; OSError without a number for gzip and bzip2
            if isinstance(e, OSError) and e.errno is not None:
                raise
            raise DataError(
                f"{public_url(self.url)}: compressed data damaged after byte {self.count} ({first_line(e)}); copy or write it again"
            ) from None
        buffer[: len(data)] = data
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        """Close the decompressor."""
        self.file.close()
        super().close()


def decompressed(file: BinaryIO, url: str) -> BinaryIO:
    """Decompress a stream if it is compressed by gzip, bzip2, xz or zstd, which is recognised by its first bytes.

    Reading raises DataError if the compressed data are damaged or end early. Raises MissingExtra if zstd is needed and not installed.
    """
    buffered = io.BufferedReader(cast(io.RawIOBase, file), BUFFER)
    head = buffered.peek(8)[:8]
    reader: Any
    if head.startswith(b"\x1f\x8b"):
        reader = gzip.GzipFile(fileobj=buffered)
    elif head.startswith(b"BZh"):
        reader = bz2.BZ2File(buffered)
    elif head.startswith(b"\xfd7zXZ"):
        reader = lzma.LZMAFile(buffered)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        try:
            import zstandard
        except ImportError:
            raise MissingExtra(
                f'{public_url(url)}: zstd-compressed; reading it needs zstandard: pip install "mmtune[zstd]"'
            ) from None
        reader = zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True)
    else:
        return cast(BinaryIO, buffered)
    return cast(BinaryIO, _Decompressed(reader, url))
