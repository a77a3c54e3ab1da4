"""The rows that `pack --drop FILE` leaves out: what `mmtune doctor --out FILE` wrote, or an id a line.

A line is a JSON object with the ids under "drop" (a list: the rows without which the finding is gone), or else under "ids", or one
"id"; any other line is an id itself. The user may delete lines, and ids of lines.
"""

import json
from pathlib import Path

from mmtune.data.identity_labels import identity_string
from mmtune.data.sources.text_tables import open_text
from mmtune.errors import DataError


def read_drop_ids(path: Path) -> frozenset[str]:
    """The ids that a file names. DataError for a file that cannot be read, and a line that is broken."""
    ids: list[str] = []
    try:
        with open_text(path) as f:
            for number, line in enumerate(f.read().split("\n"), 1):
                ids += _ids_of(line.strip(), f"{path} line {number}")
    except OSError as e:
        raise DataError(f"{path}: cannot be read ({e.strerror or e}); --drop names a file of ids, or of findings") from None
    return frozenset(id for i in ids if (id := identity_string(i)))


def _ids_of(line: str, where: str) -> list[str]:
    if not line.startswith("{"):
        return [line]
    try:
        document = json.loads(line)
    except ValueError as e:
        raise DataError(f"{where}: not valid JSON ({e})") from None
    for key in ("drop", "ids", "id"):
        if key in document:
            ids = document[key] if isinstance(document[key], list) else [document[key]]
            if all(isinstance(i, str | int) for i in ids):
                return [str(i) for i in ids]
            raise DataError(f"{where}: {key!r} is no list of ids")
    raise DataError(f"{where}: neither 'drop' nor 'ids' nor 'id' in it; write it with `mmtune doctor --out FILE`")
