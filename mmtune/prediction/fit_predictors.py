"""Make the predictors of a task from reference data (knn, anomaly) or class names (zero_shot)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, DataWarning, ModelError, RecipeError
from mmtune.evaluation.clusters import recordings_in
from mmtune.evaluation.tasks import anomaly, knn
from mmtune.evaluation.tasks.anomaly import AnomalyScoring, anomalous_rows, column_of_rows, normal_rows, same_source
from mmtune.evaluation.tasks.evaluate_task import check_options
from mmtune.evaluation.tasks.knn import source_of_rows, voting_references
from mmtune.evaluation.tasks.task import (
    check_neighbours,
    class_labels,
    grouped_by_class,
    row_values,
    rows_with_value,
    warn_of_neighbours,
)
from mmtune.evaluation.tasks.training_wording import wording_note
from mmtune.evaluation.tasks.zero_shot import class_vectors, language_tower
from mmtune.evaluation.trained_pairs import towers_apart
from mmtune.prediction.alarm_threshold import AlarmThreshold, alarm_threshold, parse_rate
from mmtune.prediction.predictors import AnomalyPredictor, KnnPredictor, Predictor, ZeroShotPredictor
from mmtune.relevance.items import concatenated, take_rows, unique_items

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

NORMAL = "normal"
"""The class of all references of an anomaly predictor."""
FOLDS = 20
"""A scorer that is fitted is fitted so many times to choose a threshold, each time without the references that it then scores.

With few parts the fits have fewer references than the one that predicts, so that fewer false alarms come than are stated.
"""
ClassNames = Sequence[str] | Mapping[str, Sequence[str]]
"""Names of classes, or {class: its names}."""


@dataclass(frozen=True)
class PredictorOptions:
    """The options of `mmtune.predict` from which predictors are made; see there."""

    label: str = "group"
    neighbours: int | None = None
    threshold: str | float | None = None
    exclude_same: str | None = None
    normal: str | None = None
    classes: ClassNames = ()
    prompts: Sequence[str] = ()
    batch_size: int = 64
    quiet: bool = True
    machine: str | None = None
    scorer: str | None = None
    domain: str | None = None
    balance: str | None = None
    known_anomalies: bool = False

    def given(self) -> list[str]:
        """Names of the options that decide how a predictor is made from references, if they are not at their defaults."""
        own = ("threshold", *OF_TASKS)
        return [f.name for f in fields(self) if f.name in own and getattr(self, f.name) not in (f.default, None, [], ())]

    @property
    def of_task(self) -> dict[str, object]:
        """The options that are given and that tasks of `mmtune.evaluate` have, too."""
        return {name: getattr(self, name) for name in self.given() if name in OF_TASKS}


OF_TASKS = ("label", "neighbours", "exclude_same", "normal", "prompts", "scorer", "domain", "balance", "known_anomalies")
"""Names of the options of `PredictorOptions` that are also options of the tasks of `mmtune.evaluate`."""


def machine_rows(reference: "Data | None", machine: str) -> "Data":
    """Return the reference rows of one machine. machine: "COLUMN=VALUE".

    Raises RecipeError without reference data or for another form, and DataError if no row has the value.
    """
    if reference is None or "=" not in machine:
        raise RecipeError(
            'machine: predict takes one machine at a time: write "COLUMN=VALUE", e.g. --machine machine=fan, and give --reference DATA'
        )
    return reference.subset(rows_with_value(reference, machine))


def fit_predictors(
    model: "Model", task: str, reference: "Data | None", names: Sequence[str], options: PredictorOptions
) -> dict[str, Predictor]:
    """Return {modality: predictor} for the modalities `names`.

    Raises RecipeError for missing options and for those of another task, and DataError for reference data from which no
    predictor can be made.
    """
    check_options(task, options.of_task)
    if options.classes and task != "zero_shot":
        raise RecipeError(f"classes: {task} takes its classes from the reference data; leave it out, or use task zero_shot")
    if options.threshold is not None:
        parse_rate(options.threshold)
        if task == "zero_shot":
            raise RecipeError("threshold: zero_shot has no anomaly score; use knn or anomaly with reference data")
    if task == "zero_shot":
        return _fit_zero_shot(model, reference, names, options)
    if reference is None:
        raise RecipeError(
            f"{task}: give reference data (--reference DATA), or a model that has a stored {task} predictor (--save)"
        )
    check_neighbours(1 if options.neighbours is None else options.neighbours)
    shared = [m for m in names if m in reference.modalities]
    if not shared:
        raise DataError(f"{reference.spec}: has {', '.join(reference.modalities)}, but {', '.join(names)} is to be predicted")
    if options.threshold is not None and options.exclude_same is None:
        _warn_of_recordings(reference)
    return (_fit_knn if task == "knn" else _fit_anomaly)(model, reference, shared, options)


def _warn_of_recordings(reference: "Data") -> None:
    """Issue a DataWarning if several references are of one recording, as metadata say, and vouch for each other."""
    if (found := recordings_in(reference)) is not None:
        warnings.warn(
            f"threshold: {found.rows} references are of {found.values} values of {found.column!r}, and clips of one recording are alike: "
            f"more false alarms can come than are stated; --exclude-same {found.column} scores each without its own",
            DataWarning,
            stacklevel=3,
        )


def _fit_zero_shot(
    model: "Model", reference: "Data | None", names: Sequence[str], options: PredictorOptions
) -> dict[str, Predictor]:
    classes = options.classes
    if not classes and reference is not None:
        labels, _ = class_labels(reference, options.label)
        classes = sorted({c for c in labels if c is not None})
    named = {c: list(v) for c, v in classes.items()} if isinstance(classes, Mapping) else {c: [c] for c in classes}
    if len(named) < 2:
        raise RecipeError(
            "zero_shot: name at least two classes (--classes a,b,c), or give --reference DATA with --label COLUMN"
        )
    tower = language_tower(model)
    if note := wording_note(model, tower, named, options.prompts):
        warnings.warn(note, DataWarning, stacklevel=2)
    e = class_vectors(model, named, options.prompts, options.batch_size)
    groups = [str(g) for g in e.groups]
    out: dict[str, Predictor] = {}
    for m in names:
        if m != tower:
            try:
                scale = float(model.logit_scale(m, tower)[0].detach())
            except KeyError:
                apart = towers_apart(model, [m, tower]) or f"the model was not trained on {m} with {tower}"
                raise ModelError(
                    f"zero_shot: {apart}; train it on pairs of these first (recipes/few_shot.yaml fits heads within seconds)"
                ) from None
            out[m] = ZeroShotPredictor(e.ids, groups, e.vectors, logit_scale=scale)
    if not out:
        raise DataError(f"zero_shot: {tower} is the modality of the class names; choose another modality to predict")
    return out


def _fit_knn(model: "Model", reference: "Data", names: Sequence[str], options: PredictorOptions) -> dict[str, Predictor]:
    labels, labelled = class_labels(reference, options.label)
    vectors = embed_data(model, reference.subset(labelled), names, options.batch_size, options.quiet)
    source = source_of_rows(reference, options.exclude_same)
    out: dict[str, Predictor] = {}
    for m, e in grouped_by_class(reference, vectors, labels).items():
        ids, voting, classes = voting_references(m, e)
        warn_of_neighbours(options.neighbours, len(ids))
        found = None
        if options.threshold is not None:
            found = _threshold(m, _items(m, e), options.threshold, source, AnomalyScoring(1))
        out[m] = KnnPredictor(ids, classes, voting, options.neighbours or knn.NEIGHBOURS, found)
    return out


def _fit_anomaly(model: "Model", reference: "Data", names: Sequence[str], options: PredictorOptions) -> dict[str, Predictor]:
    domain = {} if options.domain is None else column_of_rows(reference, options.domain)
    scoring = AnomalyScoring(
        options.neighbours or anomaly.NEIGHBOURS, options.scorer or AnomalyScoring.scorer, options.balance, domain
    )
    scoring.check(options.domain, options.known_anomalies)
    is_normal, anomalous = _normal_and_anomalous(reference, options)
    source = source_of_rows(reference, options.exclude_same)
    normal = embed_data(model, reference.subset(is_normal), names, options.batch_size, options.quiet)
    others = {}
    if anomalous.any():
        others = embed_data(model, reference.subset(anomalous), names, options.batch_size, options.quiet)
    out: dict[str, Predictor] = {}
    for m, e in normal.items():
        items, faults = _items(m, e), _items(m, others[m]) if m in others else None
        found = None
        if options.threshold is not None:
            found = _threshold(m, items, options.threshold, source, scoring, faults, options.known_anomalies)
        warn_of_neighbours(options.neighbours, len(items.ids))
        known = faults if options.known_anomalies else None
        predictor = AnomalyPredictor(
            items.ids,
            [NORMAL] * len(items.ids),
            items.vectors,
            scoring.neighbours,
            found,
            scorer=scoring.scorer,
            balance=scoring.balance,
            domains=[domain.get(i) for i in items.ids] if domain else None,
            known_ids=[] if known is None else known.ids,
            known_vectors=None if known is None else known.vectors,
        )
        predictor.fit()
        out[m] = predictor
    return out


def _normal_and_anomalous(reference: "Data", options: PredictorOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return (bool [N]: which references are normal, bool [N]: which ones are anomalous and are needed).

    Raises RecipeError if known anomalies are to be used but the normal rows are not stated, and DataError if there are none.
    """
    if options.normal is None:
        if options.known_anomalies:
            raise RecipeError(
                "known_anomalies: state which references are normal, e.g. --normal defect=none; the others are anomalies"
            )
        return np.ones(len(reference), bool), np.zeros(len(reference), bool)
    is_normal = normal_rows(reference, options.normal)
    if options.known_anomalies:
        return is_normal, anomalous_rows(reference, options.normal, is_normal)
    there = np.zeros(len(reference), bool)
    if options.threshold is not None and not is_normal.all():
        there = np.array([v is not None for v in row_values(reference, options.normal.partition("=")[0])], bool) & ~is_normal
    return is_normal, there


def _items(name: str, e: Embeddings) -> Embeddings:
    """Return one row for each distinct content."""
    return take_rows(e, np.asarray(unique_items(name, e).head))


def _threshold(
    name: str,
    items: Embeddings,
    threshold: str | float,
    source: Mapping[str, str | None] | None,
    scoring: AnomalyScoring,
    faults: Embeddings | None = None,
    use_known: bool = False,
) -> AlarmThreshold:
    """Choose the threshold by scoring each item by the others, without those of the same source.

    faults: known anomalies, of which the threshold states how many it finds, each without itself and its source
    use_known: they count in the scores, too
    """
    rows = items if faults is None else concatenated(items, faults)
    is_normal = np.arange(len(rows.ids)) < len(items.ids)
    exclusion = same_source(name, rows, np.arange(len(rows.ids)), is_normal, source)
    score = scoring.among_themselves(rows, is_normal, exclusion, use_known=use_known, folds=FOLDS)
    there = np.isfinite(score)
    normal = there & is_normal
    if source is not None and len(items.ids) > 1 and not normal.any():
        raise DataError(
            f"threshold: all {len(items.ids)} normal references have one value of the column --exclude-same, so that none can be scored by "
            "the others; give normal references of at least two recordings, or leave --exclude-same out"
        )
    clusters = None if source is None else len(set(exclusion[0][normal].tolist()))
    faulty = there & ~is_normal
    found = alarm_threshold(
        score[normal],
        threshold,
        clusters=clusters,
        anomalous_M=score[faulty],
        anomalous_clusters=None if source is None else len(set(exclusion[0][faulty].tolist())),
    )
    domain_N = np.array([scoring.domain.get(i) for i in rows.ids], object)
    names = sorted({d for d in domain_N[normal] if d is not None})
    return replace(found, domains={d: float((score[normal & (domain_N == d)] > found.value).mean()) for d in names})
