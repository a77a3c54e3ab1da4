"""Files that appear whole or not at all, and append-only logs of JSON lines that survive a killed writer."""

import contextlib
import hashlib
import json
import os
import shutil
import threading
import uuid
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mmtune.errors import DataError

CANCELLED = b"\x18"
"""The control character that ends a torn line of a log (ASCII CAN). JSON escapes control characters, so no value contains it."""


def _sibling(path: Path, prefix: str, suffix: str = "") -> Path:
    """A name in the same directory that nobody else uses."""
    return path.with_name(f"{prefix}{uuid.uuid4().hex}{suffix}")


class AtomicFile:
    """A new content for `path`: bytes are written to a temporary file beside it, which `commit` renames over `path`.

    As a context manager it commits on success and discards on any exception. The temporary file is removed however its user
    ends, Ctrl-C included: its name is chosen, and its removal registered, before the file is created. Only SIGKILL leaves a
    `.tmp-*` file behind.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._temporary = _sibling(self.path, ".tmp-", self.path.suffix)
        self._file: BinaryIO | None = None
        # the last resort: a KeyboardInterrupt may also fall between two `try` blocks, e.g. on entering `__exit__`
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
        """Write everything to disk (fsync) and rename the temporary file over `path`."""
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
        """Remove the temporary file; `path` is untouched. May be called at any time, and more than once."""
        try:
            if self._file is not None:
                with contextlib.suppress(OSError):  # a full disk: the rest of the buffer cannot be written
                    self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)
        self._cleanup.detach()

    def __enter__(self) -> BinaryIO:
        return self.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.commit() if kind is None else self.discard()


def _remove_file(path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child does not remove its parent's file
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def atomic_open(path: str | Path) -> AtomicFile:
    """`with atomic_open(path) as f`: write bytes that replace `path` on success and leave it untouched on any exception."""
    return AtomicFile(path)


class AtomicDirectory:
    """A new content for the directory `path`: files are written to a temporary directory beside it, which takes `path`'s place.

    As a context manager it gives the temporary directory, publishes it on success (an older directory at `path` is replaced)
    and removes it on any exception. Cleaned up like `AtomicFile`.
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
        """Write every file to disk (fsync) and move the directory to `path`."""
        try:
            for file in self._temporary.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as f:
                        os.fsync(f.fileno())
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.path, self._old)
            os.replace(self._temporary, self.path)
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the temporary directory; `path` is as before, or published. May be called at any time."""
        _tidy_directory(self.path, self._temporary, self._old, os.getpid())
        self._cleanup.detach()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.commit() if kind is None else self.discard()


def _tidy_directory(path: Path, temporary: Path, old: Path, pid: int) -> None:
    if os.getpid() != pid:  # a forked child does not remove its parent's directory
        return
    if old.exists() and not path.exists():
        os.replace(old, path)  # interrupted between the two renames
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)


def atomic_dir(path: str | Path) -> AtomicDirectory:
    """`with atomic_dir(path) as d`: fill the directory `d`; on success it takes `path`'s place, whole."""
    return AtomicDirectory(path)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Publish `data` at `path` atomically."""
    with atomic_open(path) as f:
        f.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Publish `text` (UTF-8) at `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: object) -> None:
    """Publish `value` as indented JSON with sorted keys at `path` atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Parse a JSON file. Raises DataError naming the file when it is missing or broken."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except ValueError as e:  # broken JSON, or bytes that are not UTF-8
        raise DataError(f"{path}: not valid JSON ({e})") from None


def _json_line(row: object) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode()


def write_jsonl(path: str | Path, rows: Iterable[object]) -> None:
    """Publish `rows`, one JSON document a line, at `path` atomically."""
    with atomic_open(path) as f:
        for row in rows:
            f.write(_json_line(row))


def append_jsonl(path: str | Path, row: object) -> None:
    """Append one JSON line to a log in a single write, so that any number of processes may append to it.

    After a torn last line (its writer was killed) the row starts a line of its own: `read_jsonl_log` gives all but the torn one.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        torn = os.lseek(fd, 0, os.SEEK_END) > 0 and _last_byte(fd) != b"\n"
        os.write(fd, (CANCELLED + b"\n" if torn else b"") + _json_line(row))
    finally:
        os.close(fd)


def _last_byte(fd: int) -> bytes:
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1)


def truncate_torn_line(path: str | Path) -> None:
    """Cut a last line without its newline off a log. The caller holds the lock that every writer of the log takes."""
    if Path(path).exists():
        with open(path, "rb+") as f:
            data = f.read()
            if not data.endswith(b"\n"):
                f.truncate(data.rfind(b"\n") + 1)


def read_jsonl(path: str | Path) -> list[Any]:
    """Every document of a JSON-lines file that was published whole. Raises DataError naming the line that is not JSON."""
    return _parse_lines(path, Path(path).read_bytes(), log=False)


def read_jsonl_log(path: str | Path) -> list[Any]:
    """Every document of a log that processes append to; an empty list where there is no such file.

    A torn line, which a killed writer left, is skipped. Raises DataError naming any other line that is not JSON.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    return _parse_lines(path, data, log=True)


def _parse_lines(path: str | Path, data: bytes, log: bool) -> list[Any]:
    rows = []
    # only a newline ends a line: `splitlines` would also split at U+2028 and its like inside a value
    lines = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        torn = log and (line.endswith(CANCELLED) or number == len(lines))
        try:
            if document := line.removesuffix(CANCELLED if log else b"").strip():
                rows.append(json.loads(document))
        except ValueError as e:
            if not torn:
                raise DataError(f"{path} line {number}: not valid JSON ({e})") from None
    return rows


_SEEK = threading.Lock()


def open_for_read_at(path: str | Path) -> int:
    """A file descriptor of `path` for `read_at`."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def read_at(fd: int, size: int, offset: int) -> bytes:
    """`size` bytes from `offset` of an open file. Threads may share `fd`: no file position is used, or (Windows) one at a time."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    with _SEEK:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, size)


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
