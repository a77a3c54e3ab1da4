"""Who did what, when and why: append-only, one JSON line an event.

A move of the live pointer is one file replaced; its line in the journal is another. The pointer carries its own event (and a
version that of its build), so a process killed between the two loses nothing: the next writer adds the line.
"""

import getpass
import os
from typing import Any

from mmtune.index.layout import Layout, now
from mmtune.runtime.files import append_jsonl, read_jsonl_log, truncate_torn_line


def who() -> str:
    """The person or service: MMTUNE_USER, else the account."""
    try:
        return os.environ.get("MMTUNE_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def event(what: str, version: str | None = None, why: str | None = None, **more: Any) -> dict[str, Any]:
    """One event, now."""
    return {"at": now(), "who": who(), "what": what, "version": version, "why": why, **more}


def _lines(layout: Layout) -> list[dict[str, Any]]:
    return read_jsonl_log(layout.path / "journal.jsonl")


def _pending(layout: Layout, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events that happened (a pointer moved, a version appeared) and whose line is not there yet."""
    built = {line["version"] for line in lines if line["what"] == "build"}
    lost = [layout.record(v)["event"] for v in layout.versions() if v not in built]
    moved = layout.live()["event"]
    if moved and not any(line.get("generation") == moved["generation"] for line in reversed(lines)):
        lost.append(moved)
    return lost


def read(layout: Layout) -> list[dict[str, Any]]:
    """Every event, oldest first."""
    lines = _lines(layout)
    return lines + _pending(layout, lines)


def append(layout: Layout, line: dict[str, Any] | None = None) -> None:
    """Under the write lock: mend a torn last line, add what a killed writer did without saying so, then `line`.

    The event of a move or a build is published with it (in live.json, in version.json), so it comes here by itself.
    """
    path = layout.path / "journal.jsonl"
    truncate_torn_line(path)
    for lost in [*_pending(layout, _lines(layout)), *([line] if line else [])]:
        append_jsonl(path, lost)
