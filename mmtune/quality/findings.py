"""What the doctor's checks return: findings, the splits they look at, and the whole diagnosis."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from mmtune.data.shards.dataset import Data

SEVERITIES = ("error", "warning", "note")
EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One kind of trouble. An error makes scores or training wrong; a warning costs quality; a note is good to know."""

    code: str
    severity: str
    count: int
    message: str
    examples: list[str]
    fix: str


@dataclass
class Diagnosis:
    """Findings, the worst first; facts: what was measured on the way, also where nothing is wrong."""

    findings: list[Finding]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 1 when there is an error among the findings."""
        return int(any(f.severity == "error" for f in self.findings))

    def to_dict(self) -> dict[str, Any]:
        return {"findings": [asdict(f) for f in self.findings], "facts": self.facts}

    def to_pandas(self) -> "pandas.DataFrame":
        import pandas

        return pandas.DataFrame([asdict(f) for f in self.findings], columns=list(Finding.__dataclass_fields__))

    def _rows(self) -> tuple[list[str], list[list[str]]]:
        return ["severity", "finding", "count"], [[f.severity, f.message, f"{f.count:,}"] for f in self.findings]

    def __str__(self) -> str:
        lines: list[str] = []
        for f in self.findings:
            lines.append(f"{f.severity.upper()} {f.code} ({f.count:,}): {f.message}")
            lines += [f"    e.g. {', '.join(f.examples)}"] * bool(f.examples)
            lines.append(f"    fix: {f.fix}")
        return "\n".join([*(lines or ["nothing found"]), "", *_told(self.facts)])

    def _repr_html_(self) -> str:
        from mmtune.evaluation.result_tables import html_table

        return html_table(*self._rows(), caption="nothing found" if not self.findings else "")


def _told(facts: Mapping[str, Any], before: str = "") -> list[str]:
    """Facts as lines "name: value"; of nested ones the path is the name."""
    out = []
    for name, value in facts.items():
        nested = isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values())
        if nested or name == "space":
            out += _told(value, f"{before}{name}, ")
        else:
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
            out.append(f"{before}{name}: {', '.join(shown) if isinstance(shown, list) else shown}")
    return out


@dataclass
class Split:
    """A named part of the corpus: the rows at positions `rows` of `data`."""

    name: str
    data: "Data"
    rows: list[int]


def finding(code: str, severity: str, examples: Sequence[str], message: str, fix: str, count: int | None = None) -> Finding:
    """A Finding of all `examples`, the first few kept."""
    return Finding(code, severity, len(examples) if count is None else count, message, list(examples[:EXAMPLES]), fix)
