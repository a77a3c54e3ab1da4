"""Overwrite an item's id with asterisks in logs and JSON files. Logs are changed in place, because other processes append to them."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.segmented_log import log_files, rotation_lock

FEEDBACK = "feedback.jsonl"
"""Log from which the lines about the item are removed."""
LOGS = ("journal.jsonl", "interleave.jsonl", "shadow.jsonl", "shadow.old.jsonl")
"""Logs in which the id is overwritten. Each of these logs may have segments (`runtime.segmented_log`)."""
DOCUMENTS = ("live.json", "gate.json")
"""Files in which the id is overwritten, by name."""
FIXED = {"at", "who", "what", "version", "previous", "history", "generation", "since", "kind", "modality", "fingerprint"}
FIXED |= {"verdict", "live", "staged", "teams", "against"}
"""Keys whose values are no ids and no prose. They are left as they are, even if an item has such an id."""
TEAMS = {"live", "staged"}
"""Values of lists in interleave.jsonl that are no ids."""
WORD = r"[\w.:/\-]"
"""A character that can be part of an id: an id between two of them is part of another id."""
BYTE = rb"[\w.:/\-\x80-\xff]"
"""The same for UTF-8."""


def id_pattern(item: str) -> re.Pattern[bytes]:
    """Return a pattern that matches the id as a whole, as UTF-8 and as it is escaped in JSON, and not inside a longer id."""
    forms = {
        item.encode("utf-8", "replace"),
        *(json.dumps(item, ensure_ascii=a).encode("utf-8", "replace")[1:-1] for a in (True, False)),
    }
    return re.compile(rb"(?<!" + BYTE + rb")(?:" + b"|".join(re.escape(f) for f in sorted(forms)) + rb")(?!" + BYTE + rb")")


def mask(value: object, item: str, key: str = "") -> object:
    """Return a JSON value in which the id is overwritten with asterisks: whole strings, and the id within prose.

    key: the key under which the value was found; see FIXED.
    """
    if isinstance(value, dict):
        return {k: mask(v, item, k) for k, v in value.items()}
    if isinstance(value, list):
        return [mask(v, item, key) for v in value]
    if not isinstance(value, str) or key in FIXED or value in TEAMS:
        return value
    if value == item:
        return "*" * len(item)
    return re.sub(f"(?<!{WORD}){re.escape(item)}(?!{WORD})", "*" * len(item), value)


def _documents(line: bytes) -> Iterator[JsonObject]:
    try:
        document = json.loads(line)
    except ValueError:
        return
    if isinstance(document, dict):
        yield document


def names_item(line: bytes, item: str) -> bool:
    """Whether a JSON line or document names the item. A line that is not JSON is searched for the id's bytes."""
    for document in _documents(line):
        return mask(document, item) != document
    return id_pattern(item).search(line) is not None


def mask_logs(root: Path, item: str) -> None:
    """Overwrite the id in all append-only logs of a collection, and the feedback on the item with spaces; readers skip such lines."""
    for name in (FEEDBACK, *LOGS):
        with rotation_lock(root / name):  # a file that is renamed meanwhile would be missed
            for path in log_files(root / name):
                if name == FEEDBACK:
                    blank_feedback(path, item)
                else:
                    mask_log(path, item)


def mask_log(path: Path, item: str) -> None:
    """Overwrite the id in a file of an append-only log."""

    def masked(line: bytes) -> bytes:
        if not names_item(line, item):
            return line
        for document in _documents(line):
            new = json.dumps(mask(document, item), ensure_ascii=False).encode("utf-8", "replace")
            if len(new) <= len(line):
                return new.ljust(len(line))
        return b" " * len(line)  # a torn line, or one that another program wrote

    _overwrite(path, masked)


def blank_feedback(path: Path, item: str) -> None:
    """Overwrite the lines of a file of the feedback log that name the item with spaces."""
    _overwrite(path, lambda line: b" " * len(line) if names_item(line, item) else line)


def _overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Apply `change`, which keeps the length, to every line of a file, in place."""
    if not path.exists():
        return
    with open(path, "r+b") as f:
        offset = 0
        for line in f.read().split(b"\n"):
            changed = change(line)
            if changed != line:
                f.seek(offset)
                f.write(changed)
            offset += len(line) + 1
        f.flush()
        os.fsync(f.fileno())


def mask_document(path: Path, item: str) -> None:
    """Overwrite the id in a JSON file, atomically. The caller must hold the write lock."""
    if path.exists():
        document = read_json(path)
        if (masked := mask(document, item)) != document:
            write_json(path, masked)
