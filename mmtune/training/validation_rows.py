"""Check before training that the rows of `data.val` and `data.retention` are not rows that the model is, or was, trained on."""

import warnings
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import RecipeError
from mmtune.evaluation.leakage import TrainedLabels, contents_only, row_identity, trained_rows
from mmtune.model.artifact.trained_rows import trained_on, with_row_counts

if TYPE_CHECKING:
    from mmtune.training.training_inputs import TrainingInputs


def check_validation_rows(inputs: "TrainingInputs", allow: bool) -> None:
    """Raise RecipeError if rows of val or retention are among the training rows, or if the base model was trained on them.

    Rows are compared by id and content, as in `evaluate` and `compare`; retention rows by content only, because ids such as "1"
    may occur in unrelated datasets.

    allow: warn instead (recipe key data.allow_trained)
    """
    trained: dict[str, TrainedLabels | None] = {
        "are trained on": None if inputs.is_streamed else training_labels(inputs),
        "were trained on by the base model": trained_on(inputs.model),
    }
    for key, data in (("data.val", inputs.val), ("data.retention", inputs.retention)):
        if data is None:
            continue
        rows = {m: row_identity(data, m) for m in inputs.trained if m in data.modalities}
        for who, labels in trained.items():
            known = contents_only(labels) if key == "data.retention" else labels
            reasons = trained_rows(rows, known) if known else {}
            if not reasons:
                continue
            row = min(reasons)
            line = (
                f"{key}: {len(reasons)} of the {len(data)} rows of {data.spec} {who} (row {row!r}: {reasons[row]}); scores on "
                f"them are too high"
            )
            if not allow:
                raise RecipeError(f"{line}: remove them from {key} or from the training data, or set data.allow_trained=true")
            warnings.warn(line, stacklevel=2)


def training_labels(inputs: "TrainingInputs") -> dict[str, np.ndarray]:
    """Return the labels of the training rows, with row counts, as they are stored with the artifact."""
    data, usable = inputs.indexed, inputs.usable
    return with_row_counts({"id": data.own_id_labels[usable], **{m: data.labels[m][usable] for m in inputs.trained}})
