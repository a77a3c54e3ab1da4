"""Who did what, when and why: append-only, one JSON line an event.

A move of the live pointer is one file replaced; its line in the journal is another. The pointer carries its own event, so a
process killed between the two loses nothing: the next writer appends the line, and readers see it meanwhile.
"""

import getpass
import os
from typing import Any

from mmtune.files import append_jsonl, read_jsonl
from mmtune.lifecycle.versions import Layout, now


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
    path = layout.path / "journal.jsonl"
    return read_jsonl(path, torn=True) if path.exists() else []


def read(layout: Layout) -> list[dict[str, Any]]:
    """Every event, oldest first, the pointer's last move included."""
    lines = _lines(layout)
    pending = layout.live()["event"]
    if pending and not any(line.get("generation") == pending["generation"] for line in reversed(lines)):
        lines.append(pending)
    return lines


def append(layout: Layout, line: dict[str, Any] | None) -> None:
    """Add an event (None: only repair). Under the write lock: mends a torn last line, adds a move whose writer was killed."""
    path = layout.path / "journal.jsonl"
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as f:
            data = f.read()
            if not data.endswith(b"\n"):
                f.truncate(data.rfind(b"\n") + 1)
    pending = layout.live()["event"]
    if pending and not any(x.get("generation") == pending["generation"] for x in reversed(_lines(layout))):
        append_jsonl(path, pending)
    if line is not None and not (pending and line.get("generation") == pending["generation"]):
        append_jsonl(path, line)
