"""The results of the doctor's checks: findings, the splits that are checked, and the whole diagnosis."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from mmtune.contracts import JsonObject
from mmtune.runtime.files import write_jsonl

if TYPE_CHECKING:
    import pandas

    from mmtune.data.shards.dataset import Data

SEVERITIES = ("error", "warning", "note")
EXAMPLES = 5  # maximum number of examples per finding
COLUMNS = ("code", "severity", "count", "message", "examples", "fix")
SPACE = "space"
"""Key in `Diagnosis.facts` of all measurements of the embedding space."""

Measurements: TypeAlias = dict[str, float]
"""{name: value}, the measurements of one embedding space"""


@dataclass(frozen=True)
class Finding:
    """One kind of problem.

    code: stable name of the problem
    severity: "error": scores or training are wrong; "warning": quality suffers; "note": good to know
    count: number of rows, groups or pairs concerned
    examples: the first few of them
    fix: what to do about it
    ids: of every row that is concerned
    drop: those of them without which the finding is gone; none where dropping rows is not the remedy
    """

    code: str
    severity: str
    count: int
    message: str
    examples: list[str]
    fix: str
    ids: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)

    def to_dict(self) -> JsonObject:
        """Without `ids` and `drop`, which may be as many as there are rows (see `Diagnosis.write_findings`)."""
        return {k: v for k, v in asdict(self).items() if k not in ("ids", "drop")}


@dataclass
class Diagnosis:
    """The doctor's result: findings, most severe first, and facts, i.e. everything that was measured, problem or not."""

    findings: list[Finding]
    facts: JsonObject = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status of the command: 1 if there is an error among the findings, else 0."""
        return int(any(f.severity == "error" for f in self.findings))

    def to_dict(self) -> JsonObject:
        """Return the JSON document of `mmtune doctor --json`."""
        return {"findings": [f.to_dict() for f in self.findings], "facts": self.facts}

    def write_findings(self, path: str | Path) -> None:
        """Write one JSON line a finding, with all its ids. `mmtune pack --drop` reads it."""
        write_jsonl(path, [asdict(f) for f in self.findings])

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per finding."""
        import pandas

        return pandas.DataFrame([f.to_dict() for f in self.findings], columns=list(COLUMNS))

    def _table(self) -> tuple[list[str], list[list[str]]]:
        return ["severity", "finding", "count"], [[f.severity, f.message, f"{f.count:,}"] for f in self.findings]

    def __str__(self) -> str:
        lines: list[str] = []
        for f in self.findings:
            lines.append(f"{f.severity.upper()} {f.code} ({f.count:,}): {f.message}")
            if f.examples:
                lines.append(f"    e.g. {', '.join(f.examples)}")
            lines.append(f"    fix: {f.fix}")
        return "\n".join([*(lines or ["nothing found"]), "", *_fact_lines(self.facts)])

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        return html_table(*self._table(), caption="nothing found" if not self.findings else "")


def _fact_lines(facts: Mapping[str, object], prefix: str = "") -> list[str]:
    """Format facts as lines "name: value"; nested names are joined by commas."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and (name == SPACE or any(isinstance(v, Mapping) for v in value.values())):
            lines += _fact_lines(value, f"{prefix}{name}, ")
        elif isinstance(value, Mapping):
            lines.append(f"{prefix}{name}: {', '.join(f'{k} {v}' for k, v in value.items())}")
        else:
            lines.append(f"{prefix}{name}: {', '.join(value) or 'nothing' if isinstance(value, list) else value}")
    return lines


@dataclass
class Split:
    """A named part of the corpus: the rows at positions `rows` of `data`."""

    name: str
    data: "Data"
    rows: list[int]


def finding(
    code: str,
    severity: str,
    examples: Sequence[str],
    message: str,
    fix: str,
    count: int | None = None,
    *,
    ids: Sequence[str] | None = None,
    drop: Sequence[str] = (),
) -> Finding:
    """A Finding that keeps the first few of all `examples`, and counts them unless `count` is given. ids: default the examples."""
    count = len(examples) if count is None else count
    every, dropped = (list(dict.fromkeys(x)) for x in (examples if ids is None else ids, drop))
    return Finding(code, severity, count, message, list(examples[:EXAMPLES]), fix, every, dropped)
