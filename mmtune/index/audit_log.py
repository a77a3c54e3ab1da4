"""Who did what, when and why: COLL/journal.jsonl, append-only, one JSON line per event.

A move of the live pointer replaces one file, and its line in the log is written to another. The pointer carries its own event
(and a version the event of its build), so that a process killed between the two loses nothing: the next writer adds the line.
"""

import getpass
import os

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, now
from mmtune.runtime.files import append_jsonl, read_jsonl_log, truncate_torn_line


def current_user() -> str:
    """The person or service: MMTUNE_USER, else the account."""
    try:
        return os.environ.get("MMTUNE_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def event(what: str, version: str | None = None, why: str | None = None, **more: object) -> JsonObject:
    """An event that happens now. what: "build", "promote", "rollback", "refused", "upsert", "delete", "drop", "shadow"."""
    return {"at": now(), "who": current_user(), "what": what, "version": version, "why": why, **more}


def _lines(layout: CollectionLayout) -> list[JsonObject]:
    return read_jsonl_log(layout.path / "journal.jsonl")


def _unwritten(layout: CollectionLayout, lines: list[JsonObject]) -> list[JsonObject]:
    """Events that happened (a pointer moved, a version was published) and have no line yet."""
    built = {line["version"] for line in lines if line["what"] == "build"}
    events = [e for v in layout.versions() if v not in built and (e := _build_event(layout, v))]
    moved = layout.live()["event"]
    if moved and not any(line.get("generation") == moved["generation"] for line in reversed(lines)):
        events.append(moved)
    return events


def _build_event(layout: CollectionLayout, version: str) -> JsonObject | None:
    """The event of a version's build; None when its record is damaged, which must not stop the log."""
    try:
        return layout.record(version).get("event")
    except DataError:
        return None


def read(layout: CollectionLayout) -> list[JsonObject]:
    """Every event, oldest first."""
    lines = _lines(layout)
    return lines + _unwritten(layout, lines)


def append(layout: CollectionLayout, line: JsonObject | None = None) -> None:
    """Under the write lock: remove a torn last line, add the events that a killed writer did not write, then `line`.

    The event of a move or a build is published with it (in live.json, in version.json), so it is added without being given.
    """
    path = layout.path / "journal.jsonl"
    truncate_torn_line(path)
    for unwritten in [*_unwritten(layout, _lines(layout)), *([line] if line else [])]:
        append_jsonl(path, unwritten)
