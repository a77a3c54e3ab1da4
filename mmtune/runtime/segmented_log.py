"""An append-only JSON-lines log of bounded size: when its file is full, it is renamed to a numbered segment, and the oldest goes.

feedback.jsonl            the file that is appended to
feedback.000001.jsonl     older lines; a higher number means later lines
"""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.runtime.files import append_jsonl, read_jsonl_log
from mmtune.runtime.work_lock import FileLock, file_lock

READ_AGAIN = 10
"""How often a read starts again because another process has renamed the file meanwhile."""


def log_files(path: str | Path) -> list[Path]:
    """Return the existing files of the log at `path`, oldest lines first: its numbered segments, then the file itself."""
    path = Path(path)
    numbered = re.compile(re.escape(path.stem) + r"\.(\d{6,})" + re.escape(path.suffix))
    segments = [(int(m[1]), p) for p in path.parent.glob(f"{path.stem}.*{path.suffix}") if (m := numbered.fullmatch(p.name))]
    return [p for _, p in sorted(segments)] + ([path] if path.exists() else [])


def next_segment(path: str | Path) -> Path:
    """Return the name of the next segment of the log at `path`."""
    path = Path(path)
    older = [p for p in log_files(path) if p != path]
    number = int(older[-1].stem.rpartition(".")[2]) + 1 if older else 1
    return path.with_name(f"{path.stem}.{number:06d}{path.suffix}")


def read_segments(path: str | Path, last_bytes: int | None = None) -> list[JsonObject]:
    """Return the lines of the log and of its segments, oldest first.

    last_bytes: read only lines within the last `last_bytes` bytes, counted over all files

    Raises DataError, which names the file and the line, for a line that is damaged.
    """
    rows: list[JsonObject] = []
    for _ in range(READ_AGAIN):
        files, parts, left = log_files(path), list[list[JsonObject]](), last_bytes
        for file in reversed(files):
            if left is not None and left <= 0:
                break
            parts.append(read_jsonl_log(file, left))
            if left is not None:
                with contextlib.suppress(FileNotFoundError):
                    left -= file.stat().st_size
        rows = [row for part in reversed(parts) for row in part]
        if log_files(path) == files:
            break
    return rows


def rotation_lock(path: str | Path) -> FileLock:
    """Return the lock under which the files of a log are renamed and deleted."""
    path = Path(path)
    return file_lock(path.with_name(f".{path.name}.lock"))


class SegmentedLog:
    """A log that any number of processes append to, and that takes at most about (segments + 1) * max_bytes on the disk.

    dropping: called with the path of the oldest segment before that is deleted, because there are more than `segments`
    """

    def __init__(self, path: Path, max_bytes: int, segments: int, dropping: Callable[[Path], None] = lambda path: None) -> None:
        self.path, self.max_bytes, self.segments, self.dropping = path, max_bytes, segments, dropping

    def append(self, row: object) -> None:
        """Append one line (see `append_jsonl`), then start a new file if this one is full."""
        append_jsonl(self.path, row)
        if self._full():
            with contextlib.suppress(OSError):  # the line is written; the next append tries again
                self._rotate()

    def read(self, last_bytes: int | None = None) -> list[JsonObject]:
        """Return all lines that are kept, oldest first; see `read_segments`."""
        return read_segments(self.path, last_bytes)

    def files(self) -> list[Path]:
        """Return the existing files of the log, oldest lines first."""
        return log_files(self.path)

    def _full(self) -> bool:
        try:
            return self.path.stat().st_size > self.max_bytes
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        with rotation_lock(self.path):
            if self._full():  # another process may have renamed it meanwhile
                os.replace(self.path, next_segment(self.path))
            older = [p for p in log_files(self.path) if p != self.path]
            for oldest in older[: max(0, len(older) - self.segments)]:
                self.dropping(oldest)
                oldest.unlink(missing_ok=True)
