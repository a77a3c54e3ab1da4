"""The data card of a corpus: what it consists of, where it comes from, under which licences, and what is in two splits."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mmtune.contracts import JsonObject

LICENCE_COLUMNS = ("licence", "license", "licence_url", "license_url", "rights")
"""Usual names of a column with the licence of a row."""
MOST_VALUES = 30
"""Values of a column that the card lists; of more, it lists the most frequent."""
UNKNOWN = "not stated"


@dataclass
class CardCounts:
    """Counts that are filled row by row.

    rows, groups, values: of each split; values are by modality
    sources, licences, strata: rows by split and by source, licence and stratum
    contents: digest of a value -> splits in which it is
    """

    rows: Counter[str] = field(default_factory=Counter)
    groups: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    values: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sources: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    licences: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    strata: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    contents: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def add(
        self,
        split: str,
        group: str | None,
        names: Sequence[str],
        source: str,
        licence: str | None,
        stratum: str,
        digests: Sequence[str],
    ) -> None:
        """Count one row. names: its modalities; digests: of its values that are compared between splits."""
        self.rows[split] += 1
        if group is not None:
            self.groups[split].add(group)
        for name in names:
            self.values[name][split] += 1
        self.sources[source][split] += 1
        self.licences[licence or UNKNOWN][split] += 1
        if stratum:
            self.strata[stratum][split] += 1
        for digest in digests:
            self.contents[digest][split] += 1

    def document(
        self, splits: Sequence[str], sources: Sequence[JsonObject], dropped: Sequence[JsonObject], options: JsonObject
    ) -> JsonObject:
        """The card as JSON.

        sources: name, path, hash and history of each source
        dropped: what was dropped, see `DropCounts.to_list`
        options: how the splits were made
        """
        repeated = [c for c in self.contents.values() if sum(c.values()) > 1]
        between = [c for c in repeated if len(c) > 1]
        return {
            "rows": sum(self.rows.values()),
            "splits": {
                s: {
                    "rows": self.rows[s],
                    "groups": len(self.groups[s]),
                    **{name: counts[s] for name, counts in self.values.items()},
                }
                for s in splits
            },
            "how": options,
            "sources": [{**source, "rows": dict(self.sources[str(source["name"])])} for source in sources],
            "licences": {name: dict(counts) for name, counts in self.licences.items()},
            "strata": {name: dict(counts) for name, counts in _most(self.strata)},
            "groups in several splits": sum(
                n > 1 for n in Counter(g for groups in self.groups.values() for g in groups).values()
            ),
            "contents that occur more than once": len(repeated),
            "contents in several splits": len(between),
            "dropped": list(dropped),
        }


def _most(counts: Mapping[str, Counter[str]]) -> list[tuple[str, Counter[str]]]:
    return sorted(counts.items(), key=lambda item: (-sum(item[1].values()), item[0]))[:MOST_VALUES]


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [
        f"| {' | '.join(map(_cell, head))} |",
        "|" + "---|" * len(head),
        *(f"| {' | '.join(map(_cell, r))} |" for r in rows),
        "",
    ]


def card_markdown(card: JsonObject) -> str:
    """The card as a page in Markdown."""
    splits = list(card["splits"])
    columns = list(next(iter(card["splits"].values())))
    lines = ["# Data card", "", f"{card['rows']:,} rows.", "", "## Splits", ""]
    lines += _table(["split", *columns], [[s, *(f"{card['splits'][s][c]:,}" for c in columns)] for s in splits])
    lines += [f"- {name}: {value}" for name, value in card["how"].items() if value not in (None, [], {}, "")]
    lines += [
        f"- Groups in several splits: {card['groups in several splits']}; contents (pictures, sounds, the same bytes) in several splits: "
        f"{card['contents in several splits']}; contents that occur more than once: {card['contents that occur more than once']}.",
        "",
        "## Sources",
        "",
    ]
    rows = [
        [s["name"], s.get("made by", ""), s["sha256"][:12], *(s["rows"].get(split, 0) for split in splits)]
        for s in card["sources"]
    ]
    lines += _table(["source", "made by", "sha256", *splits], rows)
    lines += ["## Licences", ""]
    lines += _table(["licence", *splits], [[n, *(c.get(s, 0) for s in splits)] for n, c in card["licences"].items()])
    if card["strata"]:
        lines += ["## Strata", ""]
        lines += _table(["stratum", *splits], [[n, *(c.get(s, 0) for s in splits)] for n, c in card["strata"].items()])
    if card["dropped"]:
        lines += ["## Dropped", ""]
        lines += _table(["count", "unit", "reason"], [[d["count"], d["unit"], d["reason"]] for d in card["dropped"]])
    return "\n".join(lines)
