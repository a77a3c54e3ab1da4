"""The result of a command that makes pairs."""

from dataclasses import asdict, dataclass, field

from mmtune.contracts import JsonObject
from mmtune.runtime.results import ResultFields


@dataclass(frozen=True)
class PairsResult(ResultFields):
    """The result of making pairs of a source.

    out: directory with pairs.parquet, judgments.jsonl, dropped.json and pairs.json
    kind: kind of the source: logs, labels, catalog, ...
    rows: number of rows, events or files of the source
    pairs: number of rows of pairs.parquet
    judgments: number of lines of judgments.jsonl
    dropped: [{"unit", "reason", "count", "examples"}], what was not used and why, most frequent first
    files: names of all files in `out`
    measures: further figures of this kind of source
    """

    out: str
    kind: str
    rows: int
    pairs: int
    judgments: int
    dropped: list[JsonObject]
    files: list[str]
    measures: JsonObject = field(default_factory=dict)

    def to_dict(self) -> JsonObject:
        """The result as data that JSON can represent."""
        return asdict(self)

    def __str__(self) -> str:
        judgments = f" and {self.judgments:,} judgments" if self.judgments or self.kind == "logs" else ""
        lines = [f"{self.pairs:,} pairs{judgments} of {self.rows:,} rows: {self.out}"]
        for split, groups in self.measures.get("groups", {}).items():
            rows, distinct = self.measures["splits"][split], self.measures["distinct groups"]
            lines.append(f"  {split}: {rows:,} rows, {groups:,} of {distinct:,} groups")
        lines += [f"  {d['count']:,} {d['unit']} dropped: {d['reason']}" for d in self.dropped]
        return "\n".join(lines)
