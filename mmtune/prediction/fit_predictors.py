"""Make the predictors of a task from reference data (knn, anomaly) or class names (zero_shot)."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, DataWarning, ModelError, RecipeError
from mmtune.evaluation.tasks import anomaly, knn
from mmtune.evaluation.tasks.anomaly import distances, normal_rows, same_source
from mmtune.evaluation.tasks.knn import source_of_rows, voting_references
from mmtune.evaluation.tasks.task import check_neighbours, class_labels, grouped_by_class, rows_with_value
from mmtune.evaluation.tasks.training_wording import wording_note
from mmtune.evaluation.tasks.zero_shot import class_vectors, language_tower
from mmtune.prediction.alarm_threshold import AlarmThreshold, alarm_threshold, parse_rate
from mmtune.prediction.predictors import AnomalyPredictor, KnnPredictor, Predictor, ZeroShotPredictor
from mmtune.relevance.items import take_rows, unique_items

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

NORMAL = "normal"
"""The class of all references of an anomaly predictor."""
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

    def given(self) -> list[str]:
        """Names of the options that decide how a predictor is made from references, if they are not at their defaults."""
        own = ("label", "neighbours", "threshold", "exclude_same", "normal", "prompts")
        return [f.name for f in fields(self) if f.name in own and getattr(self, f.name) not in (f.default, None, [], ())]


def machine_rows(reference: "Data | None", machine: str) -> "Data":
    """Return the reference rows of one machine. machine: "COLUMN=VALUE".

    Raises RecipeError without reference data or for another form, and DataError if no row has the value.
    """
    if reference is None or "=" not in machine:
        raise RecipeError(
            'machine: write "COLUMN=VALUE", e.g. --machine machine=fan, and give reference data (--reference DATA)'
        )
    return reference.subset(rows_with_value(reference, machine))


def fit_predictors(
    model: "Model", task: str, reference: "Data | None", names: Sequence[str], options: PredictorOptions
) -> dict[str, Predictor]:
    """Return {modality: predictor} for the modalities `names`.

    Raises RecipeError for missing options, and DataError for reference data from which no predictor can be made.
    """
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
    return (_fit_knn if task == "knn" else _fit_anomaly)(model, reference, shared, options)


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
                raise ModelError(f"zero_shot: the model was not trained on {m} with {tower}") from None
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
        found = None
        if options.threshold is not None:
            found = _threshold(m, _items(m, e), options.threshold, source, 1)
        out[m] = KnnPredictor(ids, classes, voting, options.neighbours or knn.NEIGHBOURS, found)
    return out


def _fit_anomaly(model: "Model", reference: "Data", names: Sequence[str], options: PredictorOptions) -> dict[str, Predictor]:
    is_normal = normal_rows(reference, options.normal) if options.normal else np.ones(len(reference), bool)
    neighbours = options.neighbours or anomaly.NEIGHBOURS
    source = source_of_rows(reference, options.exclude_same)
    normal = embed_data(model, reference.subset(is_normal), names, options.batch_size, options.quiet)
    others = {}
    if options.threshold is not None and not is_normal.all():
        others = embed_data(model, reference.subset(~is_normal), names, options.batch_size, options.quiet)
    out: dict[str, Predictor] = {}
    for m, e in normal.items():
        items = _items(m, e)
        found = None
        if options.threshold is not None:
            anomalous = distances(others[m], items, neighbours) if m in others else None
            found = _threshold(m, items, options.threshold, source, neighbours, anomalous)
        out[m] = AnomalyPredictor(items.ids, [NORMAL] * len(items.ids), items.vectors, neighbours, found)
    return out


def _items(name: str, e: Embeddings) -> Embeddings:
    """Return one row for each distinct content."""
    return take_rows(e, np.asarray(unique_items(name, e).head))


def _threshold(
    name: str,
    items: Embeddings,
    threshold: str | float,
    source: Mapping[str, str | None] | None,
    neighbours: int,
    anomalous: np.ndarray | None = None,
) -> AlarmThreshold:
    """Choose the threshold by scoring each item by the others, without those of the same source."""
    every = np.arange(len(items.ids))
    exclusion = same_source(name, items, every, np.ones(len(every), bool), source)
    score = distances(items, items, neighbours, exclusion)
    there = np.isfinite(score)
    clusters = None if source is None else len(set(exclusion[0][there].tolist()))
    return alarm_threshold(score[there], threshold, clusters=clusters, anomalous_M=anomalous)
