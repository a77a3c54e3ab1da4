"""The audit log of a collection: who did what, when and why. Append-only JSON lines in journal.jsonl.

When changes of items fill MAX_BYTES of the file, it is renamed to a numbered segment (`runtime.segmented_log`), and the new file begins
with all events that are no changes of items, marked "carried". So the file always holds every build, promotion, rollback and erasure, and
only changes of items are lost when the oldest of more than SEGMENTS segments is deleted; that, too, is logged ("trim").

Moving the live pointer and logging the move write two files, which is not atomic. So the pointer file also stores the event of
its last move, and a version's record stores the event of its build. If a process is killed between the two writes, the next
writer appends the missing line.
"""

import contextlib
import getpass
import json
import os
from collections.abc import Sequence
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, now
from mmtune.runtime.files import append_jsonl, read_jsonl_log, truncate_torn_line, write_jsonl
from mmtune.runtime.segmented_log import log_files, next_segment, read_segments, rotation_lock

JOURNAL = "journal.jsonl"
ITEM_CHANGES = ("upsert", "delete")
"""Actions whose events are not carried over to the next file."""
_CHANGE_LINES = tuple(f'"what": "{action}"'.encode() for action in ITEM_CHANGES)
"""What the lines of changes of items contain: no text inside a JSON value can, because its quotation marks are escaped."""
MAX_BYTES, SEGMENTS = 8 << 20, 8
"""Size at which a new file begins, about 40,000 changes of items; and number of older files that are kept."""


def current_user() -> str:
    """Return the person or service to log: the environment variable MMTUNE_USER, else the login name."""
    try:
        return os.environ.get("MMTUNE_USER") or getpass.getuser()
    except (ImportError, KeyError, OSError):  # ImportError: no USERNAME, and no module pwd, on Windows
        return str(os.getuid()) if hasattr(os, "getuid") else "unknown"


def event(action: str, version: str | None = None, reason: str | None = None, **extra: object) -> JsonObject:
    """Return an event with the current time and user.

    action: "build", "promote", "rollback", "refused", "upsert", "delete", "drop", "erase", "adopt", "shadow" or
        "shadow off", "trim".
    extra: further keys of the event.

    In the log, `action` is stored as "what" and `reason` as "why".
    """
    return {"at": now(), "who": current_user(), "what": action, "version": version, "why": reason, **extra}


def _lines(layout: CollectionLayout) -> list[JsonObject]:
    """Return all events that are no changes of items: the current file has them all. The many changes are not parsed."""
    return read_jsonl_log(layout.path / JOURNAL, without=_CHANGE_LINES)


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
    """Return all events that are kept, oldest first."""
    path = layout.path / JOURNAL
    lines, seen = list[JsonObject](), set[str]()
    for line in read_segments(path):
        event = _plain(line)
        name = json.dumps(event, sort_keys=True)
        if "carried" not in line or name not in seen:
            lines.append(event)
            seen.add(name)
    if len(log_files(path)) > 1:  # the oldest events may be in the last file only
        lines.sort(key=lambda line: str(line.get("at", "")))
    return lines + _missing_events(layout, lines)


def releases(layout: CollectionLayout) -> list[JsonObject]:
    """Return all events that are no changes of items, oldest first."""
    lines = [_plain(line) for line in _lines(layout)]
    return lines + _missing_events(layout, lines)


def _plain(line: JsonObject) -> JsonObject:
    return {k: v for k, v in line.items() if k != "carried"}


def append(layout: CollectionLayout, line: JsonObject | None = None) -> None:
    """Append the missing events, then `line`. The caller must hold the write lock.

    An incomplete last line, left by a killed writer, is removed first. Events of builds and pointer moves need not be passed
    as `line`: they are read from version.json and live.json.
    """
    path = layout.path / JOURNAL
    if not path.exists() and (older := log_files(path)):  # a writer was killed while it began a new file
        _begin_file(path, read_jsonl_log(older[-1]))
    truncate_torn_line(path)
    for missing in [*_missing_events(layout, _lines(layout)), *([line] if line else [])]:
        append_jsonl(path, missing)
    if path.exists() and path.stat().st_size > MAX_BYTES:
        with contextlib.suppress(OSError):  # the events are logged; the next append tries again
            _rotate(path)


def _begin_file(path: Path, lines: Sequence[JsonObject]) -> None:
    """Write a new file with those events of the last one that are no changes of items."""
    write_jsonl(path, [{**line, "carried": True} for line in lines if line["what"] not in ITEM_CHANGES])


def _rotate(path: Path) -> None:
    """Begin a new file if half of this one is changes of items, and delete the oldest of too many."""
    lines = read_jsonl_log(path)
    if sum(len(json.dumps(line)) for line in lines if line["what"] in ITEM_CHANGES) < MAX_BYTES // 2:
        return
    with rotation_lock(path):
        os.replace(path, next_segment(path))
        _begin_file(path, lines)
        older = log_files(path)[:-1]
        for oldest in older[: max(0, len(older) - SEGMENTS)]:
            changes = [line for line in read_jsonl_log(oldest) if line["what"] in ITEM_CHANGES]
            when = f" from {changes[0]['at'][:19]} to {changes[-1]['at'][:19]}" if changes else ""
            reason = f"the log keeps {SEGMENTS} older files; {len(changes)} changes of items{when} are gone"
            append_jsonl(path, event("trim", None, reason))
            oldest.unlink()
