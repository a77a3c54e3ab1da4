"""The public function `predict`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.model.dual_encoder import Model
    from mmtune.prediction.fit_predictors import ClassNames
    from mmtune.prediction.prediction_result import Predictions


def predict(
    model: Model | str | Path,
    inputs: object,
    *,
    task: str = "knn",
    reference: DataLike | None = None,
    label: str = "group",
    classes: ClassNames = (),
    prompts: Sequence[str] = (),
    normal: str | None = None,
    neighbours: int | None = None,
    exclude_same: str | None = None,
    threshold: str | float | None = None,
    modalities: Sequence[str] | None = None,
    machine: str | None = None,
    locate: float | None = None,
    save: bool = False,
    batch_size: int = 64,
    quiet: bool = True,
    scorer: str | None = None,
    domain: str | None = None,
    balance: str | None = None,
    known_anomalies: bool = False,
) -> Predictions:
    """Predict the class or the anomaly score of files, rows or values that nobody has labelled.

    Inputs that cannot be decoded are in the result's `errors`.

    model: a `Model`, or what `mmtune.load` accepts
    inputs: a file, a folder of files, packed data by name or opened, or a list of files and values (images, arrays, ...)
    task: "knn": class by the votes of the nearest labelled references; "zero_shot": class by the nearest class name; "anomaly":
        anomaly score by the `scorer`, by default the distance (1 - cosine) to the nearest normal references
    reference: for knn: data with labelled rows; for anomaly: data with normal rows. None uses the predictor that is stored in
        the artifact
    label: metadata column of the reference with the class, or "group"
    classes: for zero_shot: class names, or {class: its names}; empty means the labels of `reference`
    prompts: for zero_shot: templates with one {}, whose embeddings are averaged; empty means those of the model
    normal: for anomaly: "COLUMN=VALUE" of the normal references; None means all. The others then show how many known anomalies
        the threshold finds
    neighbours: number of nearest references; None means 5 for knn and 1 for anomaly
    exclude_same: metadata column of the reference, e.g. the recording; when the threshold is chosen, references with equal values
        are not compared
    threshold: for knn and anomaly: false-alarm rate, e.g. "0.01fpr", or "auto" (0.01, or the lowest that the references allow).
        Inputs with an anomaly score above the threshold are alarms: unlike all references
    modalities: modalities to predict; None means all of the model but text
    machine: "COLUMN=VALUE": use the references of this machine only
    locate: length in seconds of windows of each longer recording that are predicted as well, overlapping by half, to say where in
        the recording something is: `windows` of its prediction
    save: store references, classes and threshold in the artifact that the model was loaded from
    batch_size: values in one forward pass
    quiet: show no progress
    scorer: for anomaly: "nearest" (default), "mahalanobis", "gmm", a registered scorer, or "package.module:Class", as in `evaluate`
    domain: for anomaly: metadata column of the reference with domains, e.g. source and target; the threshold also states the share
        of the normal references of each domain that are above it
    balance: for anomaly: "smote" or "mixup": add interpolated normal embeddings to the smaller domains; needs `domain`
    known_anomalies: for anomaly: use the references that are not `normal` as known anomalies; inputs near to them score higher

    Raises DataError or RecipeError if no predictor can be made, e.g. because there are too few normal references for the rate.
    """
    from mmtune.prediction.predict import predict as predict_

    return predict_(
        model,
        inputs,
        task=task,
        reference=reference,
        label=label,
        classes=classes,
        prompts=prompts,
        normal=normal,
        neighbours=neighbours,
        exclude_same=exclude_same,
        threshold=threshold,
        modalities=modalities,
        machine=machine,
        locate=locate,
        save=save,
        batch_size=batch_size,
        quiet=quiet,
        scorer=scorer,
        domain=domain,
        balance=balance,
        known_anomalies=known_anomalies,
    )
