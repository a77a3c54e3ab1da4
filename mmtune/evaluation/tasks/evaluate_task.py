"""`mmtune.evaluate(..., task=...)`: a model judged by classification without examples, by its neighbours, or by what is not
as usual. Rows that the model was trained on, and rows that are their own reference, are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings, direction
from mmtune.data.loader.decode import decode_row
from mmtune.embedding.embed import embed_data, shared_modalities
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.leakage import identity, refuse_shared, refuse_trained
from mmtune.evaluation.slices import metadata_slices
from mmtune.evaluation.tasks import anomaly, knn
from mmtune.evaluation.tasks.anomaly import Anomalies, detect
from mmtune.evaluation.tasks.classify import Classified, by_neighbours, count, of_one_group
from mmtune.evaluation.tasks.zero_shot import class_vectors, named_classes, speaker, zero_shot
from mmtune.relevance.items import unite
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.search.vectors import unit

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

OPTIONS = {
    "zero_shot": ("label", "names", "prompts"),
    "knn": ("label", "train", "neighbours", "apart"),
    "anomaly": ("normal", "by", "train", "neighbours", "apart", "slices"),
}
"""Task -> the options that it takes."""
SHOWN = 8  # confusions and classes that are shown to people


@dataclass
class TaskResult:
    """One task on one model: found[modality] how each kind of signal did; settings: what was asked."""

    task: str
    fingerprint: str
    found: "dict[str, Classified | Anomalies]"
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `mmtune eval --task`."""
        found = {m: f.to_dict() for m, f in self.found.items()}
        return {"task": self.task, "fingerprint": self.fingerprint, "settings": self.settings, "results": found}

    def metric(self, name: str, modality: str | None = None) -> float:
        """accuracy, macro_f1, auroc or partial_auroc of one modality (by default of the only one)."""
        if modality is None and len(self.found) > 1:
            raise RecipeError(f"{name}: of which modality? there are: {', '.join(self.found)}")
        chosen = self.found.get(modality or next(iter(self.found)))
        if chosen is None:
            raise RecipeError(f"{modality}: was not judged; there are: {', '.join(self.found)}")
        source = chosen.mean if isinstance(chosen, Anomalies) else chosen
        if not hasattr(source, name):
            raise RecipeError(f"no metric {name!r} of {self.task}")
        return float(getattr(source, name))

    def __str__(self) -> str:
        return "\n\n".join(str(f) if isinstance(f, Anomalies) else _told(f) for f in self.found.values())


def _told(found: Classified) -> str:
    """Scores, the confusion matrix where it is small, else what is confused most."""
    from mmtune.evaluation.result_tables import plain_table

    lines = [str(found)] + ([f"{found.skipped:,} rows left out: no class, or none to judge them by"] if found.skipped else [])
    if len(found.classes) <= SHOWN:
        rows = [[c, *(f"{n:,}" for n in line)] for c, line in zip(found.classes, found.confusion.tolist(), strict=True)]
        return "\n".join([*lines, plain_table(["true class, by the one found", *found.classes], rows)])
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    for at in np.argsort(-wrong, axis=None, kind="stable")[:SHOWN]:
        i, j = divmod(int(at), len(found.classes))
        if wrong[i, j]:
            lines.append(f"  {found.classes[i]} taken for {found.classes[j]}: {wrong[i, j]:,} of {found.confusion[i].sum():,}")
    return "\n".join(lines)


def evaluate_task(
    model: "Model",
    data: "Data",
    task: str,
    *,
    trained: "Mapping[str, np.ndarray] | None" = None,
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    processes: Processes = SINGLE_PROCESS,
    **options: Any,
) -> TaskResult:
    """Judge `model` on `data` by `task`. trained: labels of the rows it was trained on, which are refused.

    zero_shot: label ("group" or a metadata column: the true class), names (a column, or words, saying what a class is called),
    prompts (templates with one {}, averaged). knn: label, train (DATA that answers; default: the other rows of `data`),
    neighbours. anomaly: normal ("COLUMN=VALUE"), by (a column: each machine is judged by itself), train (DATA with normal
    rows; default: those of `data`, each left out where it is judged), neighbours, slices (columns: anomalous rows by value).
    knn, anomaly: apart (a column, e.g. the recording: rows that share it never judge each other, nor lie on both sides).
    processes: those that all call this; each embeds a share, all have the result.

    Raises RecipeError for an option of another task, DataError for rows that cannot be judged.
    """
    refuse_options(task, options)
    given = {k: v for k, v in options.items() if _is_given(v)}
    names = _signals(model, data, modalities, task)
    refuse_trained({m: identity(data, m) for m in names}, trained, "the model")
    run: dict[str, Any] = {"zero_shot": _zero_shot, "knn": _knn, "anomaly": _anomaly}
    found = run[task](_Work(model, data, names, batch_size, quiet, processes), **given)
    settings = {k: getattr(v, "spec", v) for k, v in given.items()}
    return TaskResult(task, model.fingerprint, found, {"data": data.spec, **settings})


def _is_given(value: Any) -> bool:
    return value is not None and value != () and value != []


def refuse_options(task: str, options: Mapping[str, Any]) -> None:
    """RecipeError for a task that there is not, for an option of another task, and for one that makes no sense."""
    if task != "retrieval" and task not in OPTIONS:
        raise RecipeError(f"task {task!r}: there are: retrieval, {', '.join(OPTIONS)}")
    for option, value in options.items():
        if _is_given(value) and option not in OPTIONS.get(task, ()):
            owners = [t for t, known in OPTIONS.items() if option in known]
            if not owners and task == "retrieval":
                raise RecipeError(f"evaluate: no option {option!r}")
            raise RecipeError(f"{option}: goes with task {' or '.join(owners or ['retrieval'])}, not with {task}")
    if options.get("neighbours") is not None and options["neighbours"] < 1:
        raise RecipeError(f"neighbours: {options['neighbours']} is not 1 or more")


def _signals(model: "Model", data: "Data", wanted: Sequence[str] | None, task: str) -> list[str]:
    """What is judged: what both have, words left out unless they are asked for or nothing else is there."""
    both = shared_modalities(model, data, wanted)
    if wanted:
        return both
    signals = [m for m in both if not modalities.get(m).language]
    if not signals and task == "zero_shot":
        raise DataError(f"{data.spec}: zero_shot classifies signals, not words; the data have {', '.join(data.modalities)}")
    return signals or both


@dataclass
class _Work:
    model: "Model"
    data: "Data"
    names: list[str]
    batch_size: int
    quiet: bool
    processes: Processes

    def embed(self, data: "Data", kept: np.ndarray) -> dict[str, Embeddings]:
        """Vectors of the rows of `data` that are `kept` (bool [N])."""
        names = [m for m in self.names if m in data.modalities]
        missing = [m for m in self.names if m not in names]
        if missing:
            raise DataError(f"{data.spec}: has no {missing[0]}; it has {', '.join(data.modalities)}")
        return embed_data(self.model, data.subset(kept), names, self.batch_size, self.quiet, processes=self.processes)

    def reference(self, train: "Data | str", apart: str | None) -> "Data":
        from mmtune.data.shards.dataset import open_data

        found = open_data(train) if isinstance(train, str) else train
        refuse_shared(self.data, found, [m for m in self.names if m in found.modalities], apart)
        return found


def column(data: "Data", name: str) -> list[str | None]:
    """A metadata column, "group", or a modality of words, as strings; None where a row has no value."""
    if name in data.present and modalities.get(name).language:
        return [str(decode_row(data, int(i), name)) if data.present[name][i] else None for i in range(len(data))]
    return [None if v in (None, "") else str(v) for v in (data.groups if name == "group" else data.column(name))]


def _by_class(data: "Data", vectors: Mapping[str, Embeddings], labels: Sequence[str | None]) -> dict[str, Embeddings]:
    """The vectors with classes where their groups stood."""
    of = dict(zip(data.ids, labels, strict=True))
    return {
        m: replace(e, groups=[of[i] for i in e.ids], labels={k: v for k, v in e.labels.items() if k != "group"})
        for m, e in vectors.items()
    }


def _known(data: "Data", label: str) -> tuple[list[str | None], np.ndarray]:
    """(the class of each row, which rows have one). DataError for fewer than two classes."""
    labels = column(data, label)
    if len({c for c in labels if c is not None}) < 2:
        raise DataError(f"{data.spec}: fewer than two classes by {label!r}: nothing to classify")
    return labels, np.array([c is not None for c in labels], bool)


def _zero_shot(
    work: _Work, label: str = "group", names: str | None = None, prompts: Sequence[str] = ()
) -> "dict[str, Classified | Anomalies]":
    labels, kept = _known(work.data, label)
    words = speaker(work.model)
    called = named_classes(labels, column(work.data, names) if names else None, work.data.spec)
    classes = class_vectors(work.model, called, prompts, work.batch_size)
    vectors = _by_class(work.data, work.embed(work.data, kept), labels)
    out = {m: zero_shot(e, classes, direction(m, words)) for m, e in vectors.items() if m != words}
    if not out:
        raise DataError(f"zero_shot: {words} names the classes; ask for another modality to classify")
    for m, found in out.items():
        found.skipped += int((work.data.present[m] & ~kept).sum())
    return dict(out)


def _knn(
    work: _Work,
    label: str = "group",
    train: "Data | str | None" = None,
    neighbours: int = knn.NEIGHBOURS,
    apart: str | None = None,
) -> "dict[str, Classified | Anomalies]":
    labels, kept = _known(work.data, label)
    reference = None if train is None else work.reference(train, apart)
    vectors = _by_class(work.data, work.embed(work.data, kept), labels)
    out: dict[str, Classified | Anomalies] = {}
    if reference is None:
        origin = dict(zip(work.data.ids, column(work.data, apart), strict=True)) if apart else None
        for m in vectors:
            out[m] = by_neighbours(vectors, m, neighbours, origin)
        return out
    theirs, known = _known(reference, label)
    answers = _by_class(reference, work.embed(reference, known), theirs)
    for m, e in vectors.items():
        out[m] = _from(m, e, answers[m], neighbours, int((work.data.present[m] & ~kept).sum()))
    return out


def _from(m: str, rows: Embeddings, reference: Embeddings, neighbours: int, skipped: int) -> Classified:
    """Each row's class by the reference's items; items of identical content whose classes differ answer nothing."""
    items = unite(m, reference)
    at, names = of_one_group(items, reference.groups)
    found = knn.by_reference(unit(rows.vectors, m), np.asarray(items.vectors)[at], names, neighbours)
    truth = [str(g) for g in rows.groups]
    classes = sorted({*truth, *found})
    number = {c: i for i, c in enumerate(classes)}
    confusion = count([number[t] for t in truth], [number[f] for f in found], len(classes))
    return Classified(f"{m}->{m}", classes, confusion, skipped, "neighbours")


def _anomaly(
    work: _Work,
    normal: str | None = None,
    by: str | None = None,
    train: "Data | str | None" = None,
    neighbours: int = anomaly.NEIGHBOURS,
    apart: str | None = None,
    slices: Sequence[str] = (),
) -> "dict[str, Classified | Anomalies]":
    usual = _usual(work.data, normal)
    reference = None if train is None else work.reference(train, apart)
    if usual.all():
        raise DataError(f"{work.data.spec}: all {len(usual)} rows are normal by {normal}: nothing to detect")
    parts = metadata_slices(work.data, slices)
    vectors = work.embed(work.data, np.ones(len(work.data), bool))
    answers: dict[str, Embeddings] = {}
    machines: dict[str, str | None] | None = None
    if reference is not None:
        chosen = _usual(reference, normal)
        answers, machines = work.embed(reference, chosen), _machines(reference, by)
    origin = dict(zip(work.data.ids, column(work.data, apart), strict=True)) if apart else None
    said = column(work.data, str(normal).partition("=")[0])  # who does not say is neither
    known = {i: u for i, u, s in zip(work.data.ids, usual.tolist(), said, strict=True) if s is not None}
    return {
        m: detect(
            m,
            e,
            known,
            _machines(work.data, by),
            reference=answers.get(m),
            reference_machine=machines,
            apart=origin,
            parts=parts,
            k=neighbours,
        )
        for m, e in vectors.items()
    }


def _usual(data: "Data", normal: str | None) -> np.ndarray:
    """Which rows are normal [N]. DataError when none is."""
    name, equals, value = (normal or "").partition("=")
    if not equals:
        raise RecipeError('anomaly: say what is normal: normal "COLUMN=VALUE", e.g. --normal defect=none')
    found = column(data, name)
    usual = np.array([v == value for v in found], bool)
    if not usual.any():
        some = sorted({v for v in found if v is not None})
        raise DataError(
            f"{data.spec}: no row has {name}={value}; there are: {', '.join(some[:8])}{', ...' if some[8:] else ''}"
        )
    return usual


def _machines(data: "Data", by: str | None) -> dict[str, str | None]:
    return dict(zip(data.ids, column(data, by) if by else [anomaly.ALL] * len(data), strict=True))
