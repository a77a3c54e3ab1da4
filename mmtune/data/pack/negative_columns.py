"""Find the columns of tables with explicit negatives: `anchor,positive,negative[,negative_2 ...]`, `query,image,negative_image` ...

The modality of a column is the one that the user names, the one in the column's name (`negative_MODALITY`), or else the one that
all of its first values have: media by their bytes or the extension of their path, everything else is text.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmtune import modalities
from mmtune.data.pack.columns import named_column, path_or_bytes
from mmtune.data.pack.file_names import existing_path
from mmtune.data.sources.row_source import InvalidRow, RowSource
from mmtune.errors import DataError, Rejected

QUERY_NAMES, POSITIVE_NAMES = ("anchor", "query"), ("positive", "pos")
NEGATIVE_NAME = re.compile(r"(hard[_ ]?)?neg(ative)?s?([_ ]?\d+)?")
"""Usual names of the columns. They count only if a table has a query column and a positive or a negative column."""
SNIFFED_VALUES = 100
"""Number of values from which the modality of a column is inferred."""


@dataclass(frozen=True)
class PairColumn:
    """A column and its modality ("" if it is not known yet)."""

    column: str
    modality: str = ""


@dataclass(frozen=True)
class NegativeColumns:
    """The columns of a table with explicit pairs or negatives.

    query: the column of the queries (anchors); None if the other modalities of a row are the queries of its negatives
    positive: the column of the positives; None if the row's other modalities are
    negatives: the columns of the negatives
    """

    query: PairColumn | None
    positive: PairColumn | None
    negatives: tuple[PairColumn, ...]

    @property
    def within(self) -> bool:
        """Whether query and positive have the same modality, so that they are packed as two rows of one group."""
        return self.query is not None and self.positive is not None and self.query.modality == self.positive.modality

    def all(self) -> list[PairColumn]:
        """All the columns."""
        return [c for c in (self.query, self.positive, *self.negatives) if c]

    def row_columns(self) -> dict[str, str]:
        """Modality -> column, for the columns whose values are packed into the rows of the queries."""
        return {c.modality: c.column for c in (self.positive, self.query) if c}

    def directions(self, negative: PairColumn, present: Sequence[str]) -> list[str]:
        """The directions "a->b" in which a negative holds, for a row that has the modalities `present`."""
        b = negative.modality
        if self.query and (self.query.modality != b or self.within):
            return [f"{self.query.modality}->{b}"]
        if self.positive and self.positive.modality != b:
            return [f"{self.positive.modality}->{b}"]
        return [f"{a}->{b}" for a in present if a != b]


def find_negative_columns(
    source: RowSource, columns: Mapping[str, str], query: str | None, positive: str | None, negatives: Sequence[str]
) -> NegativeColumns | None:
    """Return the columns of explicit pairs and negatives, or None if the table has none.

    columns: modality -> column, as the user has named them for `pack`
    query, positive, negatives: "COLUMN" or "COLUMN:MODALITY", as the user has named them; without any, usual names are recognised

    Raises DataError if a named column does not exist, or if a modality cannot be inferred.
    """
    found = _named(source, query, positive, negatives) if query or positive or negatives else _usual(source.columns)
    if found is None:
        return None
    known = {c: m for m, c in columns.items() if c}
    unknown = [c.column for c in found.all() if not c.modality and c.column not in known]
    if unknown:
        known |= _sniff(source, unknown)

    def typed(column: PairColumn | None) -> PairColumn | None:
        return column and (column if column.modality else replace(column, modality=known[column.column]))

    negative = tuple(typed(c) or c for c in found.negatives)
    return NegativeColumns(typed(found.query), typed(found.positive), negative)


def _named(source: RowSource, query: str | None, positive: str | None, negatives: Sequence[str]) -> NegativeColumns:
    def column(text: str | None, role: str) -> PairColumn | None:
        if not text:
            return None
        name, _, modality = text.rpartition(":") if text not in source.columns and ":" in text else (text, "", "")
        if modality:
            modalities.get(modality)
        return PairColumn(named_column(source, name, role), modality)

    negative = [c for text in negatives if (c := column(text, "negative"))]
    return NegativeColumns(column(query, "query"), column(positive, "positive"), tuple(negative))


def _usual(columns: Sequence[str]) -> NegativeColumns | None:
    lower = {c.strip().lower(): c for c in reversed(columns)}
    query = next((lower[n] for n in QUERY_NAMES if n in lower), None)
    positive = next((lower[n] for n in POSITIVE_NAMES if n in lower), None)
    negatives = []
    for column in columns:
        name = column.strip().lower()
        modality = _modality_in_name(name)
        if modality or (query and NEGATIVE_NAME.fullmatch(name)):
            negatives.append(PairColumn(column, modality))
    if not (negatives or (query and positive)):
        return None
    wrap = {c: PairColumn(c) for c in (query, positive) if c}
    return NegativeColumns(wrap.get(query or ""), wrap.get(positive or "") if query else None, tuple(negatives))


def _modality_in_name(name: str) -> str:
    """The modality in a name such as `negative_MODALITY`, `MODALITY_negative_2` or `negative_caption`; "" if there is none."""
    for modality in modalities.names():
        for word in dict.fromkeys((modality, *modalities.get(modality).columns)):
            word = re.escape(word)
            if re.fullmatch(rf"(hard_)?neg(ative)?s?_{word}s?(_?\d+)?|{word}_neg(ative)?s?(_?\d+)?", name):
                return modality
    return ""


def _sniff(source: RowSource, columns: Sequence[str]) -> dict[str, str]:
    """Infer the modality of each column from its first values.

    Raises DataError if that is ambiguous, or if values look like paths of media, but none of these files exists.
    """
    votes: dict[str, Counter[str]] = {c: Counter() for c in columns}
    paths: dict[str, list[str]] = {c: [] for c in columns}
    for _, cells in source.rows(set(columns)):
        if isinstance(cells, InvalidRow):
            continue
        for column, counts in votes.items():
            cell = cells.get(column)
            values = cell if isinstance(cell, list) else [cell]
            if counts.total() < SNIFFED_VALUES:
                counts.update(m for v in values if (m := _modality_of(v)))
                paths[column] += [path for v in values if (path := _media_path(v))]
        if all(counts.total() >= SNIFFED_VALUES for counts in votes.values()):
            break
    for column, counts in votes.items():
        if len(counts) != 1:
            what = " and ".join(f"{m} ({n} values)" for m, n in sorted(counts.items())) or "no value"
            raise DataError(
                f"{source.path}: the column {column!r} has {what}; name its modality, e.g. --negative {column}:{modalities.names()[0]}"
            )
        missing = [p for p in paths[column] if not _exists(source, p)]
        if missing and len(missing) == len(paths[column]):
            inferred, language = next(iter(counts)), [n for n in modalities.names() if modalities.get(n).language]
            raise DataError(
                f"{source.path}: by their endings, the values of column {column!r} are paths of modality {inferred}, but no such file "
                f"exists (first: {missing[0]!r} in {source.folder}); put the files there, or name the column's modality, e.g. --negative "
                f"{column}:{language[0] if language else inferred}"
            )
    return {column: next(iter(counts)) for column, counts in votes.items()}


def _media_path(cell: object) -> str | None:
    """The path or URL in a cell that ends like a media file, without bytes beside it; None for other cells."""
    path, data = path_or_bytes(cell)
    known = path is not None and data is None and "." in path and path.rpartition(".")[2].lower() in modalities.by_extension()
    return path if known else None


def _exists(source: RowSource, path: str) -> bool:
    """Whether the file exists; True for a URL, which is not looked up here."""
    return "://" in path or os.path.exists(existing_path(os.path.join(source.folder, path)))


def _modality_of(cell: object) -> str:
    """The modality of a value; "" for an empty cell."""
    path, data = path_or_bytes(cell)
    if path is None and data is None:
        return ""
    suffix = path.rpartition(".")[2].lower() if path and "." in path else ""
    if suffix in (owner := modalities.by_extension()):
        return owner[suffix]
    language = [n for n in modalities.names() if modalities.get(n).language]
    for name in modalities.names() if data is not None else ():
        if name not in language:
            try:
                modalities.get(name).check_header(data or b"")
                return name
            except Rejected:
                continue
    return language[0] if language else ""
