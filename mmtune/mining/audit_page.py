"""The audit for a terminal, and as a page with what the examples look and sound like."""

import html
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.errors import Rejected

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

STYLE = """body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.5rem 0}td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;vertical-align:top}
td.n{font-variant-numeric:tabular-nums}img{max-width:10rem;max-height:10rem}h2{margin-top:2.5rem}
.w{background:#fff4d6;padding:.5rem .8rem;border-left:4px solid #d80}.id{color:#777;font-size:12px;word-break:break-all}"""

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


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.3f}"
    return html.escape("" if value is None else str(value))


def _table(head: list[str], rows: list[list[Any]]) -> str:
    def row(values: list[Any]) -> str:
        cells = [
            f'<td class="n" align="right">{_cell(v)}</td>' if isinstance(v, int | float) else f"<td>{_cell(v)}</td>"
            for v in values
        ]
        return f"<tr>{''.join(cells)}</tr>"

    heads = "".join(f'<th align="left">{html.escape(h)}</th>' for h in head)
    return f"<table><tr>{heads}</tr>{''.join(map(row, rows))}</table>"


def page(
    document: dict[str, Any], data: "Data | WeightedConcat | None", row_of: "Callable[[list[str]], np.ndarray] | None"
) -> str:
    """A self-contained HTML page; with `data`, examples are shown and played."""
    parts = [f"<h1>Negatives mined by {html.escape(document['fingerprint'][:12])}</h1>"]
    parts += [f'<p class="w">{html.escape(w)}</p>' for w in document["warnings"]]
    for name, d in document["directions"].items():
        a, b = name.split("->")
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts.append(_table(["", ""], [[k.replace("_", " "), d[k]] for k in COUNTS]))
        guards = [[n, c, d["dropped_alone"].get(n), d["spared_by_labels"].get(n)] for n, c in d["dropped"].items()]
        parts.append(_table(["guard", "dropped first", "would drop alone", "spared: labels say negative"], guards))
        kinds = {k: s for k, s in d["scores"].items() if s}
        if kinds:
            parts.append(_table(["scores", *next(iter(kinds.values()))], [[k, *s.values()] for k, s in kinds.items()]))
        for key, says in MEASURED.items():
            measured = d.get(key)
            if measured and measured["guards"]:
                parts.append(f"<p>{says}: {measured['queries']} queries, {measured['positives']} of")
                parts.append(f" {measured['candidates']} candidates are positives.</p>")
                rows = [
                    [n, g["dropped"], g["precision"], g["recall"], g["negatives_lost"]] for n, g in measured["guards"].items()
                ]
                parts.append(_table(["guard", "dropped", "precision", "recall", "negatives lost"], rows))
        if d["hubs"]["top"]:
            parts.append(_table(["serves most often", "times"], [[h["id"], h["serves"]] for h in d["hubs"]["top"]]))
        for kind, examples in d["examples"].items():
            parts.append(f"<h3>{TITLES.get(kind, kind)}</h3><table><tr><th>query</th><th>candidate</th>")
            parts.append("<th>score</th><th>positive</th></tr>")
            for e in examples:
                q, c = (_show(data, row_of, m, i) for m, i in ((a, e["query_id"]), (b, e["negative_id"])))
                score = f'<td class="n">{_cell(e["score"])}</td><td class="n">{_cell(e["positive_score"])}</td>'
                parts.append(f"<tr><td>{q}</td><td>{c}</td>{score}</tr>")
            parts.append("</table>")
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Mined negatives</title><style>{STYLE}</style>'
    return f"{head}{''.join(parts)}</html>\n"


def _show(
    data: "Data | WeightedConcat | None", row_of: "Callable[[list[str]], np.ndarray] | None", modality: str, row_id: str
) -> str:
    label = f'<div class="id">{html.escape(row_id)}</div>'
    if data is None or row_of is None:
        return label
    row = int(row_of([row_id])[0])
    try:
        return modalities.get(modality).show(data.read(row, modality)) + label
    except (Rejected, KeyError):
        return label
