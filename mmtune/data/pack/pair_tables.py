"""Explicit negatives and graded judgments that a pack writes beside the shards: negatives.parquet and judgments.jsonl."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mmtune.data.shards.locate import JUDGMENTS, NEGATIVES
from mmtune.runtime.files import atomic_open, write_jsonl

GRADE_STEPS = 1000
"""Fractional scores become whole grades by this factor; nDCG with linear gains does not depend on it."""


@dataclass
class _DirectionPairs:
    """The pairs of one direction, and the source row of each."""

    query_ids: list[str] = field(default_factory=list)
    negative_ids: list[str] = field(default_factory=list)
    source_rows: list[int] = field(default_factory=list)


@dataclass
class NegativeCounts:
    """Counts of the explicit negatives of a pack.

    pairs: direction -> number of (query, negative) pairs that were written
    lost: number of pairs that were not written, because the row of the query or of the negative was rejected or dropped
    first_lost: number of the first source row with such a pair; 0 if there is none
    judgments: number of graded judgments
    """

    pairs: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    first_lost: int = 0
    judgments: int = 0

    def add(self, other: "NegativeCounts") -> None:
        """Add the counts of another split."""
        for name, count in other.pairs.items():
            self.pairs[name] = self.pairs.get(name, 0) + count
        self.lost += other.lost
        self.first_lost = min(filter(None, (self.first_lost, other.first_lost)), default=0)
        self.judgments += other.judgments


class PairTables:
    """Collects the pairs and judgments of every split while the rows are packed, and writes them."""

    def __init__(self) -> None:
        self.pairs: dict[str, dict[str, _DirectionPairs]] = {}
        self.judged: dict[str, list[tuple[str, str, float, str | None]]] = {}
        self.counts = NegativeCounts()

    def add_negative(self, split: str, name: str, query_id: str, negative_id: str, source_row: int) -> None:
        """Add the negative of a query in direction `name`."""
        pairs = self.pairs.setdefault(split, {}).setdefault(name, _DirectionPairs())
        pairs.query_ids.append(query_id)
        pairs.negative_ids.append(negative_id)
        pairs.source_rows.append(source_row)

    def add_judgment(self, split: str, query_id: str, item_id: str, score: float, name: str | None) -> None:
        """Add the score of a pair; name: the direction in which it holds, or None for all."""
        self.judged.setdefault(split, []).append((query_id, item_id, score, name))

    def write(self, split: str, folder: Path, is_packed: Callable[[str], bool]) -> NegativeCounts:
        """Write the tables of one split into its folder. Pairs with a row that is not packed are counted as lost."""
        counts, parts = NegativeCounts(), []
        for name, pairs in self.pairs.get(split, {}).items():
            columns = zip(pairs.query_ids, pairs.negative_ids, pairs.source_rows, strict=True)
            kept: dict[tuple[str, str], None] = {}
            for query_id, negative_id, row in columns:
                if is_packed(query_id) and is_packed(negative_id):
                    kept[query_id, negative_id] = None
                else:
                    counts.lost += 1
                    counts.first_lost = min(counts.first_lost or row, row)
            query, negative = [q for q, _ in kept], [n for _, n in kept]
            parts.append(pa.table({"direction": [name] * len(kept), "query_id": query, "negative_id": negative}))
            counts.pairs[name] = len(kept)
        if parts:
            with atomic_open(folder / NEGATIVES) as file:
                pq.write_table(pa.concat_tables(parts), file, compression="zstd")
        judged = [j for j in self.judged.get(split, []) if is_packed(j[0]) and is_packed(j[1])]
        if judged:
            steps = 1 if all(score == int(score) for _, _, score, _ in judged) else GRADE_STEPS
            write_jsonl(folder / JUDGMENTS, [_judgment(*j, steps) for j in judged])
            counts.judgments = len(judged)
        self.counts.add(counts)
        return counts


def _judgment(query_id: str, item_id: str, score: float, name: str | None, steps: int) -> dict[str, object]:
    line: dict[str, object] = {"query": query_id, "item": item_id, "grade": round(score * steps), "score": score}
    return line | ({"direction": name} if name else {})
