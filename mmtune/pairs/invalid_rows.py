"""Count rows that a source could not read: by reason, whatever their line is."""

import re

from mmtune.data.sources.row_source import InvalidRow
from mmtune.pairs.drop_counts import DropCounts

LINE = re.compile(r"(line \d+): (.*)", re.DOTALL)
DETAILS = re.compile(r" \((?:.*\d.*)\)$", re.DOTALL)
"""Positions and counts in brackets at the end of a reason, which differ from row to row."""


def count_invalid(drops: DropCounts, row: InvalidRow, where: str) -> None:
    """Count an invalid row.

    where: the row, for the examples, if its reason names no line
    """
    line = LINE.fullmatch(row.reason)
    reason, place = (line[2], line[1]) if line else (row.reason, row.file or where)
    drops.add(DETAILS.sub("", reason), f"{place}: {reason}" if DETAILS.search(reason) else place)
