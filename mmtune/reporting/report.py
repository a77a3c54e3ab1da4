"""`mmtune.report`: compute the results of both models once, create the sections, and write one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.html.render import render
from mmtune.model.artifact.format import FITTED_HEADS
from mmtune.reporting.confusion import confusion_sections
from mmtune.reporting.embedding_map import embedding_map
from mmtune.reporting.examples import TOP, example_sections
from mmtune.reporting.forest import DifferenceDocument, ForestPlot, forest_plot, is_informative
from mmtune.reporting.glossary import TERMS, explain
from mmtune.reporting.learning_curves import learning_curves
from mmtune.reporting.measured import BY_TASK, Measured, measure
from mmtune.reporting.mined_negatives import mining_sections
from mmtune.reporting.score_distribution import score_sections
from mmtune.reporting.subject import ModelSpec, ReportSubject, report_subject
from mmtune.reporting.task_section import ReportedTask
from mmtune.reporting.value_cards import ValueCards
from mmtune.runtime.files import write_text
from mmtune.runtime.results import ResultFields

if TYPE_CHECKING:
    from mmtune.relevance.judgments import Qrels

HEADLINES = {
    "pass": ("Better", "The tuned model has gained what the gate requires, and kept what it must keep."),
    "fail": ("Not better", "Keep the current model: the tuned model does not meet the requirements of the gate."),
    "inconclusive": ("Not proven", "These queries are not enough to decide whether the tuned model is better."),
}
HEADLINES_OF_A_GAIN = {
    "fail": (
        "Better, at a price",
        "The gain is certain, but something that must not fall has fallen: keep the current model.",
    ),
    "inconclusive": (
        "Better, with a doubt",
        "The gain is certain, but these queries cannot rule out a loss where no loss is allowed.",
    ),
}
"""Headlines for a verdict other than "pass" although the gate's metric has improved with certainty."""
NO_GATE: JsonObject = {"direction": None, "min_gain": 0.0, "guards": {}}
"""For plots of a comparison by retrieval that does not decide."""


@dataclass
class ReportResult(ResultFields):
    """A report that was written.

    out: its file
    verdict: the gate's verdict: "pass", "fail" or "inconclusive"
    bytes: size of the file
    """

    out: str
    verdict: str
    bytes: int


class Tile(NamedTuple):
    """One of the few numbers shown beside the verdict."""

    name: str
    value: str
    note: str


def report(
    target: "str | Path | None",
    out: str | Path,
    *,
    base: "ModelSpec | None" = None,
    candidate: "ModelSpec | None" = None,
    data: str | None = None,
    gate: Mapping[str, object] | None = None,
    slices: Sequence[str] | None = None,
    retention: str | None = None,
    qrels: "Qrels | str | Path | None" = None,
    examples: int = 6,
    batch_size: int = 64,
    quiet: bool = True,
    allow_trained: bool = False,
    tasks: Sequence[ReportedTask] = (),
    label: str | None = None,
    cluster: str | None = None,
) -> ReportResult:
    """Write a report as one HTML file to `out`.

    Raises DataError if a model was trained on the test data (unless `allow_trained`), or if something needed is missing.

    target: a RUN directory, one of several seeds (`mmtune train --seeds`), or the JSON file of a comparison; None to compare `base` and `candidate` on `data`
    base, candidate: models, given with target None, or instead of those of the target
    data: test data, in place of the target's
    gate: what the candidate must achieve, in place of the target's
    slices: metadata columns, or "size:MODALITY"; default: columns with few values
    retention: DATA on which nothing may be lost
    qrels: relevance judgments, or their file; they replace rows and groups in deciding what is relevant
    examples: number of improved queries, and of harmed queries, shown in each direction
    tasks: other tasks by which both models are evaluated on the test data
    label: metadata column whose values are the classes of the confusion matrices; default: the groups
    cluster: metadata column, e.g. the recording, whose values the intervals of the comparison resample; default: groups and equal content
    """
    subject = report_subject(target, base, candidate, data, gate)
    measured = None
    if subject.data:
        measured = measure(subject, slices, retention, batch_size, quiet, qrels, allow_trained, tasks, cluster)
    if measured is None and tasks:
        raise DataError("a task needs both models and the data: give --base, --candidate and --data as well")
    if measured is None and cluster is not None:
        raise DataError("cluster: intervals need both models and the data: give --base, --candidate and --data as well")
    if measured is None and qrels is not None:
        raise DataError("relevance judgments need searches with the models: give --base, --candidate and --data as well")
    if measured is None and label is not None:
        raise DataError("label: confusion matrices need both models and the data: give --base, --candidate and --data as well")
    page = report_page(subject, measured, examples, label)
    write_text(out, page)
    verdict = (measured.document if measured else subject.document)["verdict"]
    return ReportResult(str(out), verdict, len(page.encode()))


def report_page(subject: ReportSubject, measured: Measured | None, examples: int = 6, label: str | None = None) -> str:
    """Return the HTML page. Without `measured`, it shows only the contents of the comparison's JSON file."""
    document = measured.document if measured else subject.document
    marked = NO_GATE if BY_TASK in document else document["gate"]
    word, meaning = headline(document)
    run = subject.run
    return render(
        "report.html.j2",
        subject=subject,
        document=document,
        gate=document["gate"],
        word=word,
        meaning=meaning,
        warnings=_notes(subject, measured),
        tiles=tiles(document),
        directions=forest_plot(document["directions"], marked),
        slices=_slice_plot(document, marked, informative=True),
        small_slices=_slice_plot(document, marked, informative=False),
        metrics=document.get("metrics", {}),
        curves=learning_curves(run.log, run.interpolation) if run else [],
        examples=example_sections(measured, examples) if measured else [],
        cards=ValueCards(measured.data) if measured else None,
        top=TOP,
        confusions=confusion_sections(measured, label) if measured else [],
        label=label,
        glossary=TERMS,
        explain=explain,
        scores=score_sections(measured) if measured else [],
        map=embedding_map(measured) if measured else None,
        mining=mining_sections(run),
        tasks=measured.tasks if measured else [],
        facts=facts(subject, measured, document),
        recipe=_recipe(subject),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _notes(subject: ReportSubject, measured: Measured | None) -> list[str]:
    """What a reader must know about the two models."""
    apart = measured.towers_apart.items() if measured else ()
    notes = [f"{side.capitalize()} tuning: {line}." for side, line in apart if line]
    if isinstance(subject.base, str) and Path(subject.base).name == FITTED_HEADS:
        notes.append(
            "Before tuning: the heads of this run as they were fitted to its training pairs before the first step, so that the difference is what "
            "the steps added to the fit. --base MODEL compares with another model, e.g. the one in use."
        )
    return notes


def headline(document: JsonObject) -> tuple[str, str]:
    """Return the verdict as a short headline and as a sentence. A certain gain is stated even if a guard fails."""
    gate, lead = _deciding(document)
    gained = lead["interval"][0] > gate["min_gain"]
    return (HEADLINES_OF_A_GAIN if gained else HEADLINES).get(document["verdict"]) or HEADLINES[document["verdict"]]


def _deciding(document: JsonObject) -> tuple[JsonObject, DifferenceDocument]:
    """The gate that decided, and the difference of its metric."""
    if BY_TASK in document:
        return document[BY_TASK]["gate"], document[BY_TASK]["difference"]
    return document["gate"], document["directions"][document["gate"]["direction"]]


def _slice_plot(document: JsonObject, gate: JsonObject, informative: bool) -> ForestPlot | None:
    """Plot the slices with (or without) an informative interval. Returns None if there are none."""
    chosen = {n: d for n, d in document["slices"].items() if is_informative(d) == informative}
    return forest_plot(chosen, gate) if chosen else None


def tiles(document: JsonObject) -> list[Tile]:
    """The tiles: the gate's metric, wins and losses, and the direction or slice with the lowest difference."""
    gate, lead = _deciding(document)
    low, high = lead["interval"]
    known = f"95% interval {low:+.3f} to {high:+.3f}" if is_informative(lead) else f"{lead['clusters']} clusters: no interval"
    out = [
        Tile(
            f"{gate['metric']}, {gate['direction']}",
            f"{lead['base']:.3f} → {lead['candidate']:.3f}",
            f"{lead['difference']:+.3f}, {known}",
        )
    ]
    changed = lead["wins"] + lead["losses"]
    if BY_TASK not in document or changed:  # a task that classifies no rows counts no wins
        out.append(
            Tile(
                "rows" if BY_TASK in document else "queries",
                f"{lead['wins']:,} better, {lead['losses']:,} worse",
                f"{lead['queries'] - changed:,} the same, of {lead['queries']:,}",
            )
        )
    others = {**document["slices"], **{n: d for n, d in document["directions"].items() if n != gate["direction"]}}
    others = {n: d for n, d in others.items() if is_informative(d)}
    if others:
        name, worst = min(others.items(), key=lambda x: (x[1]["difference"], x[0]))
        out.append(Tile("weakest spot", f"{worst['difference']:+.3f}", f"{name}, {worst['queries']:,} queries"))
    return out


def facts(subject: ReportSubject, measured: Measured | None, document: JsonObject) -> dict[str, str]:
    """What is needed to repeat the comparison: models, data, fingerprints and versions."""
    out = {
        "Base": str(subject.base or ""),
        "Candidate": str(subject.candidate or ""),
        "Test data": subject.data or "",
    }
    out |= {f"Fingerprint of the {k}": str(v) for k, v in document.get("fingerprints", {}).items()}
    if measured and measured.qrels is not None:
        out["Relevance"] = "from judgments, not from rows and groups"
    if measured:
        out["Test rows"] = f"{len(measured.data):,} ({', '.join(measured.data.modalities)})"
        out["Fingerprint of the data"] = measured.data.fingerprint
    if subject.run:
        environment = subject.run.environment
        out |= {f"Version of {k}": str(v) for k, v in environment.get("versions", {}).items()}
        out |= {k.capitalize(): str(environment[k]) for k in ("device", "platform", "precision", "seed") if k in environment}
    return {k: v for k, v in out.items() if v}


def _recipe(subject: ReportSubject) -> str:
    import yaml

    return yaml.safe_dump(subject.run.recipe, sort_keys=False, allow_unicode=True) if subject.run else ""
