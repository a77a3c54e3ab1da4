"""Atomic writes of files and directories, and append-only JSON-lines logs that stay readable after a writer was killed."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import threading
import uuid
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mmtune.errors import DataError

CANCELLED = b"\x18"
"""Marks a torn line of a log, i.e. one that was written only in part: the ASCII control character CAN is appended to it.

JSON escapes control characters, so a complete line never contains it.
"""


URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of a URL, also of one that pathlib has changed to a path (s3:/bucket/file)."""


def refuse_url(path: str | Path, key: str) -> None:
    """Raise DataError for a URL where a local file or directory is to be written, which would become a directory called "s3:".

    key: the option or recipe key, for the message
    """
    if URL.match(str(path)):
        raise DataError(
            f"{key}: {path} is a URL; files are written to a local directory only: name one, and copy it there afterwards"
        )


def _sibling(path: Path, prefix: str, suffix: str = "") -> Path:
    """A unique path in the same directory as `path`."""
    return path.with_name(f"{prefix}{uuid.uuid4().hex}{suffix}")


class AtomicFile:
    """Replaces the file `path` atomically: bytes are written to a temporary file in the same directory, and `commit` renames it
    to `path`.

    As a context manager it commits on success and discards the temporary file on any exception. The temporary file is also
    removed on Ctrl-C, because its removal is registered before it is created. Only SIGKILL leaves a `.tmp-*` file behind.

    temporary: path of the temporary file, in the same directory; default: a unique one
    """

    def __init__(self, path: str | Path, temporary: Path | None = None):
        self.path = Path(path)
        self._temporary = temporary or _sibling(self.path, ".tmp-", self.path.suffix)
        self._file: BinaryIO | None = None
        # needed beside the `try` blocks: a KeyboardInterrupt can also be raised between them, e.g. on entry to `__exit__`
        self._cleanup = weakref.finalize(self, _remove_file, self._temporary, os.getpid())

    def open(self) -> BinaryIO:
        """Create the temporary file and return it, open for binary writing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "xb")
            return self._file
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Flush the temporary file to disk (fsync) and rename it to `path`."""
        assert self._file is not None, "commit before open"
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self.path)
        except BaseException:
            self.discard()
            raise
        self._cleanup.detach()

    def discard(self) -> None:
        """Remove the temporary file and leave `path` unchanged. May be called at any time, and more than once."""
        try:
            if self._file is not None:
                with contextlib.suppress(OSError):  # closing flushes the buffer, which fails on a full disk
                    self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)
        self._cleanup.detach()

    def __enter__(self) -> BinaryIO:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.commit() if kind is None else self.discard()


def _remove_file(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child process must not remove the file of its parent
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def atomic_open(path: str | Path) -> AtomicFile:
    """Open `path` for an atomic binary write: `with atomic_open(path) as f`. On any exception `path` is left unchanged."""
    return AtomicFile(path)


class AtomicDirectory:
    """Replaces the directory `path` as a whole: files are written to a temporary directory in the same parent directory, and
    `commit` renames it to `path`.

    As a context manager it yields the temporary directory. On success that directory replaces an existing one at `path`. On any
    exception, Ctrl-C included, it is removed; only SIGKILL leaves a `.tmp-*` directory behind.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._temporary = _sibling(self.path, f".tmp-{self.path.name}-")
        self._old = _sibling(self.path, f".old-{self.path.name}-")
        self._cleanup = weakref.finalize(self, _tidy_directory, self.path, self._temporary, self._old, os.getpid())

    def __enter__(self) -> Path:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.mkdir()
            return self._temporary
        except BaseException:
            self.discard()
            raise

    def commit(self) -> None:
        """Flush every file to disk (fsync) and rename the temporary directory to `path`, replacing an existing directory."""
        try:
            for file in self._temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb" if os.name != "nt" else "rb+") as f:  # Windows flushes only files open for writing
                        os.fsync(f.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path, self._old)
            os.replace(self._temporary, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary directory, if it is still there. `path` keeps its old or new content. May be called at any time."""
        _tidy_directory(self.path, self._temporary, self._old, os.getpid())
        self._cleanup.detach()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.commit() if kind is None else self.discard()


def _tidy_directory(path: Path, temporary: Path, old: Path, pid: int) -> None:
    if os.getpid() != pid:  # a forked child process must not remove the directory of its parent
        return
    if old.exists() and not path.exists():  # `commit` was interrupted between its two renames: restore the old directory
        os.replace(old, path)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)


def atomic_dir(path: str | Path) -> AtomicDirectory:
    """Write a directory atomically: `with atomic_dir(path) as d`, then write files into `d`. On success `d` becomes `path`."""
    return AtomicDirectory(path)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_open(path) as f:
        f.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: object) -> None:
    """Write `value` to `path` atomically, as indented JSON with sorted keys."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file. Raises DataError, which names the file, if it is missing or not valid JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as e:  # invalid JSON, bytes that are not UTF-8, or deep nesting
        raise DataError(f"{path}: not valid JSON ({e})") from None


def _json_line(row: object) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 cannot encode
        return (json.dumps(row) + "\n").encode()


def write_jsonl(path: str | Path, rows: Iterable[object]) -> None:
    """Write `rows` to `path` atomically, as one JSON document per line."""
    with atomic_open(path) as f:
        for row in rows:
            f.write(_json_line(row))


def append_jsonl(path: str | Path, row: object) -> None:
    """Append one JSON line to a log in a single write, so that several processes may append at the same time.

    If the last line is torn (its writer was killed while writing, or the disk was full), that line is first marked with CANCELLED
    and ended, so that `read_jsonl_log` skips it. Raises OSError if the line was not written completely.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        torn = os.lseek(fd, 0, os.SEEK_END) > 0 and _last_byte(fd) != b"\n"
        data = (CANCELLED + b"\n" if torn else b"") + _json_line(row)
        if os.write(fd, data) != len(data):  # the rest is not tried again: another process may have appended meanwhile
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)


def _last_byte(fd: int) -> bytes:
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1)


def truncate_torn_line(path: str | Path) -> None:
    """Remove the last line of a log if it does not end with a newline. The caller must hold the write lock of the log."""
    if Path(path).exists():
        with open(path, "rb+", buffering=0) as f:
            if f.seek(0, os.SEEK_END) and _last_byte(f.fileno()) != b"\n":
                f.seek(0)
                f.truncate(f.read().rfind(b"\n") + 1)


def read_jsonl(path: str | Path) -> list[Any]:
    """Parse a JSON-lines file that was written atomically. Raises DataError, which names the line, if a line is not JSON."""
    return _parse_lines(path, Path(path).read_bytes(), log=False)


def read_jsonl_log(path: str | Path, last_bytes: int | None = None, without: Sequence[bytes] = ()) -> list[Any]:
    """Parse a log written by `append_jsonl`. Returns an empty list if the file does not exist.

    Torn lines, left by a writer that was killed, are skipped. Raises DataError, which names the line, if any other line is not
    JSON.

    last_bytes: read only the lines that lie completely in the last `last_bytes` bytes of the file
    without: leave out the lines that contain one of these, and do not parse them
    """
    try:
        with open(path, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            start = 0 if last_bytes is None else max(0, size - last_bytes)
            f.seek(max(0, start - 1))
            if start:
                f.readline()  # the end of a line that begins before `start`
            data = f.read()
    except FileNotFoundError:
        return []
    return _parse_lines(path, data, log=True, without=without)


def _parse_lines(path: str | Path, data: bytes, log: bool, without: Sequence[bytes] = ()) -> list[Any]:
    rows = []
    # split at newlines only: `splitlines` would also split at U+2028 and similar characters inside a value
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        if any(part in line for part in without):
            continue
        torn = log and (line.endswith(CANCELLED) or number == len(lines))
        try:
            if document := line.removesuffix(CANCELLED if log else b"").strip():
                rows.append(json.loads(document))
        except (ValueError, RecursionError) as e:
            if not torn:
                raise DataError(f"{path} line {number}: not valid JSON ({e})") from None
    return rows


FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
"""Errors of a full disk, a quota, and a limit on the size of files (RLIMIT_FSIZE)."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, is a full disk or quota. Libraries without Python's files say it in their own words."""
    seen: BaseException | None = error
    while seen is not None:
        full = isinstance(seen, OSError) and seen.errno in FULL
        if full or any(words in str(seen) for words in ("No space left on device", "disk is full")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


_SEEK = threading.Lock()


def open_for_read_at(path: str | Path) -> int:
    """Open `path` and return its file descriptor, for use with `read_at`."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Read `size` bytes from `offset` of an open file. Several threads may use the same `fd` at once.

    `os.pread` does not move the file position. Windows does not have it: there a lock protects the seek and the read.
    """
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    with _SEEK:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


def sha256_file(path: str | Path) -> str:
    """The SHA-256 hash of a file's content, in hexadecimal. The file is read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
