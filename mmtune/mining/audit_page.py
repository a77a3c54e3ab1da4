"""Render the mining audit as lines for a terminal, and as an HTML page that shows images and plays sounds of example pairs."""

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.errors import Rejected
from mmtune.html.render import render, render_macro, trusted

if TYPE_CHECKING:
    from markupsafe import Markup

    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.mining.context import RowsOf

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

MEASURED = {
    "measured": "on labelled rows, with the labels hidden",
    "measured_by_truth": "on the groups of the truth column, where the labels do not decide",
}
"""Audit keys of the measurements of guard quality, and a description of the rows on which each was measured."""

TITLES = {
    "mined": "Mined, closest to (or above) the positive",
    "relative_margin": "Dropped by the relative margin",
    "absolute_margin": "Dropped by the absolute margin",
    "max_score": "Dropped by max_score",
    "near_duplicate": "Dropped as a near-duplicate",
    "verifier": "Dropped by the verifier",
}
"""Headings of the example pairs, by kind."""


def summary(document: JsonObject) -> str:
    """Summarise the audit in a few lines per direction, for a terminal."""
    lines = []
    for name, d in document["directions"].items():
        lines.append(f"{name}: {d['mined']} negatives for {d['queries'] - d['queries_with_none']} of {d['queries']} queries")
        dropped = ", ".join(f"{guard} {n}" for guard, n in d["dropped"].items() if n)
        lines.append(f"  candidates {d['looked_at']}; dropped: {dropped or 'none'}; known negatives: {d['trusted_pairs']}")
        for kind in ("positive", "mined", "dropped"):
            quantiles = d["scores"][kind]
            if quantiles:
                lines.append(f"  {kind:<9}" + "  ".join(f"{k} {v:.3f}" for k, v in quantiles.items()))
        lines += _margin_lines(d.get("relative_margin"))
        for key, measured_on in MEASURED.items():
            for guard, g in (d.get(key) or {}).get("guards", {}).items():
                if g["precision"] is not None and d[key]["positives"]:
                    lines.append(f"  {guard}: precision {g['precision']:.2f}, recall {g['recall']:.2f} ({measured_on})")
    lines += [f"note: {warning}" for warning in document["warnings"]]
    return "\n".join(lines)


def _margin_lines(margin: JsonObject | None) -> list[str]:
    if not margin or margin["value"] is None:
        return []
    caught = ""
    if margin["caught"]:
        caught = f", drops {margin['caught']:.0%} of hidden positives and {margin['lost']:.0%} of negatives"
    return [f"  relative margin {margin['value']:g} ({margin['how']}{caught})"]


@dataclass
class Table:
    """One table of the HTML page."""

    head: list[str]
    rows: list[list[object]]
    caption: str = ""


def page(document: JsonObject, data: "Data | WeightedConcat | None", rows_of: "RowsOf | None") -> str:
    """Render the audit as a self-contained HTML page. If `data` is given, the examples show and play the rows' contents.

    rows_of: maps row ids to row numbers of `data`
    """
    directions = []
    for name, d in document["directions"].items():
        a, b = name.split("->")
        examples = [
            (
                TITLES.get(kind, kind),
                [
                    {
                        "query": _card(data, rows_of, a, e["query_id"]),
                        "candidate": _card(data, rows_of, b, e["negative_id"]),
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


def _tables(d: JsonObject) -> list[Table]:
    """Return the tables of one direction: counts, guards, score quantiles, guard quality and hubs."""
    guards: list[list[object]] = [
        [n, c, d["dropped_alone"].get(n), d["spared_by_labels"].get(n)] for n, c in d["dropped"].items()
    ]
    out = [
        Table(["", ""], [[k.replace("_", " "), d[k]] for k in COUNTS]),
        Table(["guard", "dropped first", "would drop by itself", "kept: known negatives"], guards),
    ]
    kinds = {k: s for k, s in d["scores"].items() if s}
    if kinds:
        out.append(Table(["scores", *next(iter(kinds.values()))], [[k, *s.values()] for k, s in kinds.items()]))
    for key, measured_on in MEASURED.items():
        measured = d.get(key)
        if measured and measured["guards"]:
            caption = (
                f"{measured_on}: {measured['queries']} queries, {measured['positives']} of {measured['candidates']} candidates are "
                "positives."
            )
            rows: list[list[object]] = [
                [n, g["dropped"], g["precision"], g["recall"], g["negatives_lost"]] for n, g in measured["guards"].items()
            ]
            out.append(Table(["guard", "dropped", "precision", "recall", "negatives lost"], rows, caption))
    if d["hubs"]["top"]:
        out.append(Table(["mined most often", "times"], [[h["id"], h["serves"]] for h in d["hubs"]["top"]]))
    return out


def _card(data: "Data | WeightedConcat | None", rows_of: "RowsOf | None", modality: str, row_id: str) -> "Markup":
    """Render the content of a row with the row id below it; the id alone if the content cannot be shown."""
    card = None
    if data is not None and rows_of is not None:
        row = int(rows_of([row_id])[0])
        with contextlib.suppress(Rejected, KeyError, NotImplementedError):
            card = trusted(modalities.get(modality).thumbnail_html(data.read(row, modality), row_id))
    return render_macro("values.html.j2", "labelled", card, row_id)
