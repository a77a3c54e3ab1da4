"""Count what of a source is not used: by reason, with the first examples of each."""

from dataclasses import dataclass, field

from mmtune.contracts import JsonObject

MAX_EXAMPLES = 5
"""Examples that are kept of each reason."""


@dataclass
class DropCounts:
    """Counts of dropped units by (unit, reason); a unit is what is counted: "rows", "pairs", "users", "queries" ..."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: object = None, *, count: int = 1, unit: str = "rows") -> None:
        """Count `count` dropped units.

        reason: one phrase, the same for all units that are dropped for it, e.g. "no caption"
        example: where or what, e.g. "line 12" or an id; only the first few of a reason are kept
        """
        key = (unit, reason)
        if count:
            self.counts[key] = self.counts.get(key, 0) + count
            self.examples.setdefault(key, [])
            if example is not None:
                self.add_example(reason, example, unit=unit)

    def add_example(self, reason: str, example: object, *, unit: str = "rows") -> None:
        """Add an example of units that are counted already."""
        kept = self.examples.setdefault((unit, reason), [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(str(example)[:200])

    def total(self, unit: str = "rows") -> int:
        """The number of dropped units of one kind."""
        return sum(n for (u, _), n in self.counts.items() if u == unit)

    def reasons(self) -> str:
        """The most frequent reasons in words, for a message."""
        return "; ".join(f"{d['count']:,} {d['unit']}: {d['reason']}" for d in self.to_list()[:3]) or "there is none"

    def to_list(self) -> list[JsonObject]:
        """[{"unit", "reason", "count", "examples"}], most frequent first."""
        order = sorted(self.counts, key=lambda key: (-self.counts[key], key))
        return [
            {"unit": unit, "reason": reason, "count": self.counts[unit, reason], "examples": self.examples[unit, reason]}
            for unit, reason in order
        ]
