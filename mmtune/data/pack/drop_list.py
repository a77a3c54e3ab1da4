"""Read the ids of the rows that `pack --drop FILE` leaves out, from a file of ids or of findings of `mmtune doctor --out FILE`.

A line is either a JSON object or an id. In an object the ids are under the first of these keys that it has:
    drop: list of the rows to remove, so that the finding does not occur any more
    ids: list of all rows of the finding
    id: a single row

Users may edit the file: delete lines to keep their rows, or delete single ids.
"""

import json
from pathlib import Path

from mmtune.data.identity_labels import identity_string
from mmtune.data.sources.text_tables import open_text
from mmtune.errors import DataError


def read_drop_ids(path: Path) -> frozenset[str]:
    """Read all ids in a file. Raises DataError if the file cannot be read or a line is invalid."""
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
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: not valid JSON ({e})") from None
    for key in ("drop", "ids", "id"):
        if key in document:
            ids = document[key] if isinstance(document[key], list) else [document[key]]
            if all(isinstance(i, str | int) for i in ids):
                return [str(i) for i in ids]
            raise DataError(f"{where}: {key!r} is not a list of ids")
    raise DataError(f"{where}: has none of the keys 'drop', 'ids' and 'id'; write the file with `mmtune doctor --out FILE`")
