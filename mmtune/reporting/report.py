"""`mmtune.report`: measure once, lay out the sections, write one file."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmtune.errors import DataError
from mmtune.html.render import render
from mmtune.reporting.confusion import confusions
from mmtune.reporting.examples import TOP, galleries
from mmtune.reporting.forest import Forest, forest, told
from mmtune.reporting.learning_curves import learning
from mmtune.reporting.measured import Measured, measure
from mmtune.reporting.media import ValueCards
from mmtune.reporting.mined_negatives import audits
from mmtune.reporting.score_distribution import scores, space
from mmtune.reporting.subject import Subject, subject
from mmtune.runtime.files import write_text

WORDS = {
    "pass": ("Better", "The tuned model gained what the gate asks for, and kept what it has to keep."),
    "fail": ("Not better", "Keep the model in use: the tuned one misses what the gate asks for."),
    "inconclusive": ("Not proven", "These queries cannot tell whether the tuned model is better."),
}
MIXED = {
    "fail": ("Better, at a price", "The gain is real, but something that must not fall has fallen: keep the model in use."),
    "inconclusive": (
        "Better, with a doubt",
        "The gain is real, but these queries cannot rule out a loss where none is allowed.",
    ),
}


def report(
    target: "str | Path | None",
    out: str | Path,
    *,
    base: Any = None,
    candidate: Any = None,
    data: str | None = None,
    gate: Mapping[str, Any] | None = None,
    slices: Sequence[str] | None = None,
    retention: str | None = None,
    qrels: Any = None,
    examples: int = 6,
    batch_size: int = 64,
    quiet: bool = True,
) -> dict[str, Any]:
    """Write the report of a RUN directory, of a comparison's JSON, or (target None) of base and candidate on data.

    slices: metadata columns or "size:MODALITY" (default: columns of few values); retention: DATA on which nothing may be lost;
    qrels: judgments or their file, which then say throughout what is right instead of rows and groups; examples: queries
    shown of each kind and direction. Returns {"out", "verdict", "bytes"}. Raises DataError for rows that a model was trained
    on, and for anything missing.
    """
    about = subject(target, base, candidate, data, gate)
    found = measure(about, slices, retention, batch_size, quiet, qrels) if about.data else None
    if found is None and qrels is not None:
        raise DataError("judgments need searches: give --base, --candidate and --data as well")
    page = report_page(about, found, examples)
    write_text(out, page)
    return {
        "out": str(out),
        "verdict": found.comparison.verdict if found else about.document["verdict"],
        "bytes": len(page.encode()),
    }


def report_page(about: Subject, found: Measured | None, examples: int = 6) -> str:
    """The page. Without measurements only what the comparison's document says is shown."""
    document = found.comparison.to_dict() if found else about.document
    cards = ValueCards(found.data) if found else None
    word, meaning = headline(document)
    return render(
        "report.html.j2",
        about=about,
        document=document,
        gate=document["gate"],
        lead=document["directions"][document["gate"]["direction"]],
        word=word,
        meaning=meaning,
        tiles=tiles(document),
        directions=forest(document["directions"], document["gate"]),
        slices=_slices(document, True),
        unsure=_slices(document, False),
        metrics=document.get("metrics", {}),
        curves=learning(about.run.log, about.run.between) if about.run else [],
        galleries=galleries(found, examples) if found else [],
        cards=cards,
        top=TOP,
        confusions=confusions(found) if found else [],
        spread=scores(found) if found else [],
        space=space(found) if found else None,
        audits=audits(about.run),
        facts=facts(about, found, document),
        recipe=_recipe(about),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def headline(document: dict[str, Any]) -> tuple[str, str]:
    """The verdict in a word or two, and in a sentence. A gain that is sure is said even where a guard decides against it."""
    gate = document["gate"]
    gained = document["directions"][gate["direction"]]["interval"][0] > gate["min_gain"]
    return (MIXED if gained else WORDS).get(document["verdict"]) or WORDS[document["verdict"]]


def _slices(document: dict[str, Any], sure: bool) -> Forest | None:
    """The slices that tell something, or those of too few things; None when there are none."""
    chosen = {n: c for n, c in document["slices"].items() if told(c) == sure}
    return forest(chosen, document["gate"]) if chosen else None


def tiles(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, note) of the few numbers that stand beside the verdict."""
    gate = document["gate"]
    lead = document["directions"][gate["direction"]]
    low, high = lead["interval"]
    out = [
        (
            f"{gate['metric']}, {gate['direction']}",
            f"{lead['base']:.3f} → {lead['candidate']:.3f}",
            f"{lead['difference']:+.3f}, 95% interval {low:+.3f} to {high:+.3f}",
        ),
        (
            "queries",
            f"{lead['wins']:,} better, {lead['losses']:,} worse",
            f"{lead['queries'] - lead['wins'] - lead['losses']:,} the same, of {lead['queries']:,}",
        ),
    ]
    rest = {**document["slices"], **{n: c for n, c in document["directions"].items() if n != gate["direction"]}}
    rest = {n: c for n, c in rest.items() if told(c)}
    if rest:
        name, worst = min(rest.items(), key=lambda x: (x[1]["difference"], x[0]))
        out.append(("weakest spot", f"{worst['difference']:+.3f}", f"{name}, {worst['queries']:,} queries"))
    return out


def facts(about: Subject, found: Measured | None, document: dict[str, Any]) -> dict[str, str]:
    """How these numbers came about, for whoever wants to see them again."""
    marks = document.get("fingerprints", {})
    out = {"Base": str(about.base or ""), "Candidate": str(about.candidate or ""), "Test data": about.data or ""}
    out |= {f"Fingerprint of the {k}": str(v) for k, v in marks.items()}
    if found and found.qrels is not None:
        out["What is right"] = "judgments, not rows and groups"
    if found:
        out["Test rows"] = f"{len(found.data):,} ({', '.join(found.data.modalities)})"
        out["Fingerprint of the data"] = found.data.fingerprint
    if about.run:
        environment = about.run.environment
        out |= {f"Version of {k}": str(v) for k, v in environment.get("versions", {}).items()}
        out |= {k.capitalize(): str(environment[k]) for k in ("device", "platform", "precision", "seed") if k in environment}
    return {k: v for k, v in out.items() if v}


def _recipe(about: Subject) -> str:
    import yaml

    return yaml.safe_dump(about.run.recipe, sort_keys=False, allow_unicode=True) if about.run else ""
