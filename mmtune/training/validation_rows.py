"""Check that the rows of `data.val` and `data.retention` are not rows that the model is, or was, trained on."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import RecipeError
from mmtune.evaluation.leakage import TrainedLabels, among, contents_only, row_identity, trained_rows
from mmtune.model.artifact.trained_rows import rows_key, trained_on, with_row_counts

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


@dataclass
class _Found:
    """Labels of validation rows that streamed rows have, too: the distinct ones, and how many rows had one of them."""

    labels: set[int] = field(default_factory=set)
    rows: int = 0

    def add(self, labels: np.ndarray) -> None:
        self.labels.update(labels.tolist())
        self.rows += len(labels)


class StreamedRowsCheck:
    """Look for rows of `data.val` and `data.retention` among the rows that are streamed in the first epoch.

    Which rows are trained on is not known beforehand. An id that both have ends the run at once, or is a warning with `allow`. Equal
    contents are counted and are a warning at the end of the epoch.
    """

    def __init__(self, inputs: "TrainingInputs", allow: bool):
        self.allow, self.finished = allow, False
        self.rows: dict[str, dict[str, Embeddings]] = {}
        self.wanted: dict[str, dict[str, np.ndarray]] = {}
        self.found: dict[str, dict[str, _Found]] = {}
        for key, data in (("data.val", inputs.val), ("data.retention", inputs.retention)):
            if data is None:
                continue
            self.rows[key] = {m: row_identity(data, m) for m in inputs.trained if m in data.modalities}
            labels = {m: e.labels[m] for m, e in self.rows[key].items()}
            if key == "data.val":  # ids of retention data may be equal by chance
                labels["id"] = np.concatenate([e.labels["id"] for e in self.rows[key].values()])
            self.wanted[key] = {k: np.unique(v[v != 0]) for k, v in labels.items()}
            self.found[key] = {k: _Found() for k in labels}

    def add(self, labels: Mapping[str, np.ndarray], ids: Sequence[str]) -> None:
        """Compare a batch. labels: "id" and each modality -> [n] labels of its rows; ids: [n]

        Raises RecipeError for an id that `data.val` has, too, unless `allow`.
        """
        if self.finished:
            return
        for key, wanted in self.wanted.items():
            for name, known in wanted.items():
                hit = among(known, labels[name])
                if hit.any():
                    self.found[key][name].add(labels[name][hit])
                    if name == "id" and not self.allow:
                        self.finished = True
                        raise RecipeError(
                            f"{key}: its row {ids[int(np.flatnonzero(hit)[0])]!r} is trained on, so scores on it are too high: remove "
                            f"such rows from {key} or from the training data, or set data.allow_trained=true"
                        )

    def finish(self) -> None:
        """Issue a warning for rows that were trained on; called after the first epoch, or where the run ends in it."""
        if self.finished:
            return
        self.finished = True
        for key, of in self.found.items():
            known: dict[str, np.ndarray] = {k: np.array(sorted(f.labels), np.int64) for k, f in of.items() if f.rows}
            known |= {rows_key(k): np.array([f.rows]) for k, f in of.items() if f.rows and k != "id"}
            reasons = trained_rows(self.rows[key], known)
            if reasons:
                row = min(reasons)
                warnings.warn(
                    f"{key}: {len(reasons)} of its rows are trained on (row {row!r}: {reasons[row]}); scores on them are too high",
                    stacklevel=2,
                )


def training_labels(inputs: "TrainingInputs") -> dict[str, np.ndarray]:
    """Return the labels of the training rows, with row counts, as they are stored with the artifact."""
    data, usable = inputs.indexed, inputs.usable
    return with_row_counts({"id": data.own_id_labels[usable], **{m: data.labels[m][usable] for m in inputs.trained}})
