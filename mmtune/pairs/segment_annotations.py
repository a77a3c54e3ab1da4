"""Read annotations of recordings: Audacity labels, Raven selection tables, and tables with a row for each segment.

Audacity   lines `start TAB end TAB label`, without a header; lines that begin with a backslash (frequencies) are skipped
Raven      a table with a header that has "Begin Time (s)" and "End Time (s)"; a selection has a row for each view, of which one is used
a table    CSV, TSV, JSONL or Parquet with columns for start and end (or duration) in seconds, and for the file if it is about several
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmtune.data.sources.row_source import InvalidRow, open_source
from mmtune.data.sources.tables import open_csv
from mmtune.data.sources.text_tables import open_text
from mmtune.errors import DataError
from mmtune.pairs.carried_columns import attribute_strings
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.invalid_rows import count_invalid

FILE_NAMES = ("recording", "file", "filename", "file_name", "path", "begin file", "begin path", "fname")
START_NAMES = (
    "start",
    "begin",
    "onset",
    "begin time (s)",
    "start_time",
    "begin_time",
    "start_s",
    "start (s)",
    "t_start",
    "from",
)
END_NAMES = ("end", "offset", "stop", "end time (s)", "end_time", "stop_time", "end_s", "end (s)", "t_end", "to")
DURATION_NAMES = ("duration", "length", "delta time (s)", "duration_s", "duration (s)")
FILE_OFFSET = "file offset (s)"
"""Column of Raven tables over several files: the beginning of a selection within its own file."""
RAVEN_OWN = {"selection", "view", "channel", "low freq (hz)", "high freq (hz)", FILE_OFFSET}
LABEL = "label"


@dataclass(frozen=True)
class Segment:
    """An annotated segment.

    start, end: seconds from the beginning of the recording
    attributes: column -> value, e.g. {"label": "crack"}
    where: file and row, for messages
    """

    start: float
    end: float
    attributes: Mapping[str, str] = field(default_factory=dict)
    where: str = ""


def seconds(cell: object) -> float:
    """A time in seconds: a number, "12,5", "1:02.5" or "1:02:03". Raises ValueError for anything else."""
    parts = str(cell).strip().replace(",", ".").split(":")
    if len(parts) > 3 or not all(parts):
        raise ValueError
    value = 0.0
    for part in parts:
        value = value * 60 + float(part)
    if not math.isfinite(value) or value < 0:
        raise ValueError
    return value


def read_sidecar(path: Path, drops: DropCounts) -> list[Segment]:
    """Read the annotations of one recording. Lines that are no segment are counted in `drops`."""
    if path.suffix.lower() == ".txt":
        with open_text(path) as f:
            head = f.readline()
        if "begin time (s)" not in head.lower():
            return _read_audacity(path, drops)
    return [segment for _, segment in read_table(path, drops)]


def _read_audacity(path: Path, drops: DropCounts) -> list[Segment]:
    found = []
    with open_text(path) as f:
        for number, line in enumerate(f, 1):
            where = f"{path.name} line {number}"
            parts = line.rstrip("\r\n").split("\t")
            if not line.strip() or line.startswith("\\"):
                continue
            try:
                found.append(Segment(seconds(parts[0]), seconds(parts[1]), {LABEL: "\t".join(parts[2:]).strip()}, where))
            except (ValueError, IndexError):
                drops.add("not start, end and label", where, unit="segments")
    return found


def read_table(path: Path, drops: DropCounts) -> Iterator[tuple[str | None, Segment]]:
    """Yield (file, segment) of a table; the file is None if it has no column for it.

    Raises DataError, which lists the columns, if there are none for start and end.
    """
    table = open_csv(path, "\t") if path.suffix.lower() == ".txt" else open_source(path)
    lower = {c.strip().lower(): c for c in table.columns}

    def column(names: tuple[str, ...]) -> str | None:
        return next((lower[n] for n in names if n in lower), None)

    file, start, end, duration = column(FILE_NAMES), column(START_NAMES), column(END_NAMES), column(DURATION_NAMES)
    if start is None or (end is None and duration is None):
        raise DataError(
            f"{path}: no columns for the start and the end (or the duration) of a segment, in seconds; rename them to start and end; "
            f"columns: {', '.join(table.columns)}"
        )
    offset = lower.get(FILE_OFFSET)
    own = {c for c in (file, start, end, duration) if c} | {c for name, c in lower.items() if name in RAVEN_OWN}
    selections: set[object] = set()
    for number, cells in table.rows(set()):
        where = f"{path.name} row {number}"
        if isinstance(cells, InvalidRow):
            count_invalid(drops, cells, where)
            continue
        selection = cells.get(lower.get("selection", ""))
        if "view" in lower and selection not in (None, ""):
            if selection in selections:
                continue
            selections.add(selection)
        try:
            begin = seconds(cells.get(start))
            stop = seconds(cells.get(end)) if end else begin + seconds(cells.get(duration or ""))
            if offset is not None and cells.get(offset) not in (None, ""):
                begin, stop = seconds(cells.get(offset)), seconds(cells.get(offset)) + stop - begin
        except ValueError:
            drops.add("no times in seconds", where, unit="segments")
            continue
        attributes = attribute_strings({c: v for c, v in cells.items() if c not in own})
        yield (str(cells.get(file)).strip() or None) if file else None, Segment(begin, stop, attributes, where)
