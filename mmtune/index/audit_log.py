"""The audit log of a collection: who did what, when and why. Append-only JSON lines in journal.jsonl.

Moving the live pointer and logging the move write two files, which is not atomic. So the pointer file also stores the event of
its last move, and a version's record stores the event of its build. If a process is killed between the two writes, the next
writer appends the missing line.
"""

import getpass
import os

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, now
from mmtune.runtime.files import append_jsonl, read_jsonl_log, truncate_torn_line


def current_user() -> str:
    """Return the person or service to log: the environment variable MMTUNE_USER, else the login name."""
    try:
        return os.environ.get("MMTUNE_USER") or getpass.getuser()
    except (ImportError, KeyError, OSError):  # ImportError: no USERNAME, and no module pwd, on Windows
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def event(action: str, version: str | None = None, reason: str | None = None, **extra: object) -> JsonObject:
    """Return an event with the current time and user.

    action: "build", "promote", "rollback", "refused", "upsert", "delete", "drop", "erase", "adopt", "shadow" or
        "shadow off".
    extra: further keys of the event.

    In the log, `action` is stored as "what" and `reason` as "why".
    """
    return {"at": now(), "who": current_user(), "what": action, "version": version, "why": reason, **extra}


def _lines(layout: CollectionLayout) -> list[JsonObject]:
    return read_jsonl_log(layout.path / "journal.jsonl")


def _missing_events(layout: CollectionLayout, lines: list[JsonObject]) -> list[JsonObject]:
    """Return the events of builds and pointer moves that are not among the log's lines yet."""
    built = {line["version"] for line in lines if line["what"] == "build"}
    events = [e for v in layout.versions() if v not in built and (e := _build_event(layout, v))]
    moved = layout.live()["event"]
    if moved and not any(line.get("generation") == moved["generation"] for line in reversed(lines)):
        events.append(moved)
    return events


def _build_event(layout: CollectionLayout, version: str) -> JsonObject | None:
    """Return the event of a version's build; None when its record is damaged, because the log must still be readable."""
    try:
        return layout.record(version).get("event")
    except DataError:
        return None


def read(layout: CollectionLayout) -> list[JsonObject]:
    """Return all events, oldest first."""
    lines = _lines(layout)
    return lines + _missing_events(layout, lines)


def append(layout: CollectionLayout, line: JsonObject | None = None) -> None:
    """Append the missing events, then `line`. The caller must hold the write lock.

    An incomplete last line, left by a killed writer, is removed first. Events of builds and pointer moves need not be passed
    as `line`: they are read from version.json and live.json.
    """
    path = layout.path / "journal.jsonl"
    truncate_torn_line(path)
    for missing in [*_missing_events(layout, _lines(layout)), *([line] if line else [])]:
        append_jsonl(path, missing)
