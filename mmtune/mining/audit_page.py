"""The audit for a terminal, and as a page with what the examples look and sound like."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.errors import Rejected
from mmtune.html.render import render, trusted

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

COUNTS = (
    "queries",
    "candidates",
    "looked_at",
    "mined",
    "mined_at_or_above_positive",
    "queries_with_none",
    "queries_with_fewer",
    "trusted_pairs",
    "suspected_false_negatives",
)

MEASURED = {"measured": "labelled rows, labels hidden", "measured_by_truth": "by the truth given, where labels do not say"}

TITLES = {
    "mined": "Mined, closest to (or above) the positive",
    "relative_margin": "Dropped by the relative margin",
    "absolute_margin": "Dropped by the absolute margin",
    "max_score": "Dropped by the highest score allowed",
    "near_duplicate": "Dropped as a near duplicate",
    "verifier": "Dropped by the verifier",
}


def summary(document: dict[str, Any]) -> str:
    """A few lines a direction."""
    lines = []
    for name, d in document["directions"].items():
        lines.append(f"{name}: {d['mined']} negatives for {d['queries'] - d['queries_with_none']} of {d['queries']} queries")
        dropped = ", ".join(f"{g} {n}" for g, n in d["dropped"].items() if n)
        lines.append(f"  looked at {d['looked_at']}; dropped: {dropped or 'none'}; known by label: {d['trusted_pairs']}")
        for kind in ("positive", "mined", "dropped"):
            s = d["scores"][kind]
            if s:
                lines.append(f"  {kind:<9}" + "  ".join(f"{k} {v:.3f}" for k, v in s.items()))
        margin = d.get("relative_margin")
        if margin and margin["value"] is not None:
            caught = ""
            if margin["caught"]:
                caught = f", drops {margin['caught']:.0%} of hidden positives and {margin['lost']:.0%} of negatives"
            lines.append(f"  relative margin {margin['value']:g} ({margin['how']}{caught})")
        for key, says in MEASURED.items():
            for guard, g in (d.get(key) or {}).get("guards", {}).items():
                if g["precision"] is not None and d[key]["positives"]:
                    lines.append(f"  {guard}: precision {g['precision']:.2f}, recall {g['recall']:.2f} ({says})")
    lines += [f"note: {w}" for w in document["warnings"]]
    return "\n".join(lines)


@dataclass
class Table:
    """One table of the page."""

    head: list[str]
    rows: list[list[object]]
    caption: str = ""


def page(
    document: dict[str, Any], data: "Data | WeightedConcat | None", row_of: "Callable[[list[str]], np.ndarray] | None"
) -> str:
    """The audit as a self-contained HTML page; with `data`, the examples' values are shown and played.

    row_of: row ids -> row numbers of `data`.
    """
    directions = []
    for name, d in document["directions"].items():
        a, b = name.split("->")
        examples = [
            (
                TITLES.get(kind, kind),
                [
                    {
                        "query": _card(data, row_of, a, e["query_id"]),
                        "candidate": _card(data, row_of, b, e["negative_id"]),
                        "score": e["score"],
                        "positive_score": e["positive_score"],
                    }
                    for e in pairs
                ],
            )
            for kind, pairs in d["examples"].items()
        ]
        directions.append({"name": name, "tables": _tables(d), "examples": examples})
    return render(
        "mining_audit.html.j2",
        fingerprint=document["fingerprint"][:12],
        warnings=document["warnings"],
        directions=directions,
    )


def _tables(d: dict[str, Any]) -> list[Table]:
    """Counts, guards, score quantiles, calibration and hubs of one direction's part of the audit."""
    guards: list[list[object]] = [
        [n, c, d["dropped_alone"].get(n), d["spared_by_labels"].get(n)] for n, c in d["dropped"].items()
    ]
    out = [
        Table(["", ""], [[k.replace("_", " "), d[k]] for k in COUNTS]),
        Table(["guard", "dropped first", "would drop alone", "spared: labels say negative"], guards),
    ]
    kinds = {k: s for k, s in d["scores"].items() if s}
    if kinds:
        out.append(Table(["scores", *next(iter(kinds.values()))], [[k, *s.values()] for k, s in kinds.items()]))
    for key, says in MEASURED.items():
        measured = d.get(key)
        if measured and measured["guards"]:
            caption = (
                f"{says}: {measured['queries']} queries, {measured['positives']} of {measured['candidates']} candidates are "
                "positives."
            )
            rows: list[list[object]] = [
                [n, g["dropped"], g["precision"], g["recall"], g["negatives_lost"]] for n, g in measured["guards"].items()
            ]
            out.append(Table(["guard", "dropped", "precision", "recall", "negatives lost"], rows, caption))
    if d["hubs"]["top"]:
        out.append(Table(["mined most often", "times"], [[h["id"], h["serves"]] for h in d["hubs"]["top"]]))
    return out


def _card(
    data: "Data | WeightedConcat | None", row_of: "Callable[[list[str]], np.ndarray] | None", modality: str, row_id: str
) -> "Markup":
    """The value of a row with its id under it; the id alone where the value cannot be shown."""
    label = f"<small>{html.escape(row_id)}</small>"
    if data is None or row_of is None:
        return trusted(label)
    row = int(row_of([row_id])[0])
    try:
        return trusted(
            f'<div class="card">{modalities.get(modality).thumbnail_html(data.read(row, modality), row_id)}</div>{label}'
        )
    except (Rejected, KeyError, NotImplementedError):
        return trusted(label)
