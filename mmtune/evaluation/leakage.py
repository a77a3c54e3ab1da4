"""Leakage checks: refuse to score rows that the model was trained on, or that are among their own reference rows."""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.model.artifact.trained_rows import is_plain, rows_key, with_row_counts

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

IDENTIFYING = 0.9
"""A modality identifies rows if at least this share of its contents are distinct; class names as captions do not."""

TrainedLabels = Mapping[str, "np.ndarray | set[int]"]
"""What a model was trained on: int64 labels by kind ("id" and the modalities); "MODALITY:rows": number of rows that have it."""


def trained_rows(vectors: Mapping[str, Embeddings], trained: TrainedLabels) -> dict[str, str]:
    """Return {row id: reason} for the rows that the model was trained on.

    A row counts as trained on if its id, or a content that identifies rows, or all of its contents were trained on.

    A text does not identify a row on its own: other photos of a product often have the caption of a training row. Neither does
    any modality whose contents repeat between rows. Repeats are looked for among the given rows and among the training rows.
    The latter is needed for a test set with one photo per product: its contents are distinct, and yet all occur in training.
    """
    known = {k: _distinct(v) for k, v in trained.items() if is_plain(k)}
    reasons: dict[str, str] = {}
    content_known: dict[str, list[bool]] = {}
    for name, e in vectors.items():
        id_label, content = e.labels.get("id"), e.labels.get(name)
        if id_label is not None and "id" in known:
            for i in np.flatnonzero(among(known["id"], id_label) & (id_label != 0)).tolist():
                reasons.setdefault(e.ids[i], "its id was trained on")
        if content is None or name not in known:
            hit = np.zeros(len(e.ids), bool)
        else:
            hit = among(known[name], content) & (content != 0)
            repeats_in_training = rows_key(name) in trained and 2 * len(known[name]) <= min(trained[rows_key(name)])
            is_text = name in modalities.names() and modalities.get(name).language
            if not is_text and len(np.unique(content)) >= IDENTIFYING * len(content) and not repeats_in_training:
                for i in np.flatnonzero(hit).tolist():
                    reasons.setdefault(e.ids[i], f"its {name} was trained on")
        for i, row in enumerate(e.ids):
            content_known.setdefault(row, []).append(bool(hit[i]))
    for row, of_modalities in content_known.items():
        if all(of_modalities):
            reasons.setdefault(row, "all of its contents were trained on")
    return reasons


def _distinct(labels: "np.ndarray | set[int]") -> np.ndarray:
    """The distinct labels, ascending. Stored labels are so already, and are not sorted again."""
    array = labels if isinstance(labels, np.ndarray) else np.fromiter(labels, np.int64, len(labels))
    return array if len(array) < 2 or bool((array[1:] > array[:-1]).all()) else np.unique(array)


def among(known: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether each label is one of `known` (distinct, ascending), bool [N]. Few labels are found in many without sorting these."""
    if not len(known):
        return np.zeros(len(labels), bool)
    at = np.searchsorted(known, labels)
    return known[np.minimum(at, len(known) - 1)] == labels


def refuse_trained_rows(
    vectors: Mapping[str, Embeddings], trained: TrainedLabels | None, model: str, allow: bool = False, what: str = "these"
) -> None:
    """Raise DataError if the model was trained on a row of `vectors`; with `allow`, warn instead.

    trained: labels of the model's training rows; None: not known, so no row is refused
    model: name of the model for the message
    what: the rows, for the message, e.g. "the retention"
    """
    reasons = trained_rows(vectors, trained) if trained else {}
    if not reasons:
        if trained and any(not is_plain(k) and k.endswith(":sample") for k in trained) and "id" not in trained:
            warnings.warn(
                f"{model} was trained on streamed rows, of which no record is kept: whether {what} rows are among them cannot be told",
                stacklevel=3,
            )
        return
    rows = {r for e in vectors.values() for r in e.ids}
    row = min(reasons)
    line = f"{model} was trained on {len(reasons)} of {what} {len(rows)} rows (row {row!r}: {reasons[row]}); scores on them are too high"
    if allow:
        warnings.warn(line, stacklevel=3)
    else:
        raise DataError(
            f"{line}: evaluate on rows it was not trained on, or allow it with --allow-trained (allow_trained=True)"
        )


def contents_only(trained: TrainedLabels | None) -> TrainedLabels | None:
    """Return the labels without those of ids, which may be equal in unrelated datasets, such as retention data."""
    return None if trained is None else {k: v for k, v in trained.items() if k != "id"}


def row_identity(data: "Data", modality: str) -> Embeddings:
    """Return ids, groups and labels of the rows that have `modality`, with empty vectors; enough for `trained_rows`."""
    at = np.flatnonzero(data.present[modality])
    labels = {k: v[at] for k, v in data.labels.items()}
    return Embeddings(data.ids.take(at), data.groups.take(at), labels, np.empty((len(at), 0), np.float32))


def refuse_shared_rows(data: "Data", reference: "Data", names: list[str], column: str | None = None) -> None:
    """Raise DataError if `data` and `reference` share a row, or a value of the metadata column `column`.

    A row is shared if its id or its content in the modalities `names` is in both. `column` names e.g. the recording: rows cut from one
    recording are so similar that they would make the scores too good.
    """
    known = with_row_counts({k: reference.labels[k] for k in ("id", *names) if k in reference.labels})
    reasons = trained_rows({m: row_identity(data, m) for m in names}, known)
    if reasons:
        row = min(reasons)
        why = reasons[row].replace("was trained on", "is in the references").replace("were trained on", "are in the references")
        raise DataError(
            f"{reference.spec}: {len(reasons)} of the {len(data)} rows of {data.spec} are among the references (row {row!r}: "
            f"{why}); a row must not be its own neighbour: take them out of the references"
        )
    if column is not None:
        both = _values(data, column) & _values(reference, column)
        if both:
            raise DataError(
                f"{reference.spec}: {len(both)} values of {column!r} are in {data.spec} too, e.g. {min(both)!r}; evaluated and "
                "reference rows must not share a value: split the data by this column"
            )


def _values(data: "Data", column: str) -> set[str]:
    """Return the distinct values of a metadata column, without empty ones."""
    return {str(v) for v in data.column(column) if v not in (None, "")}
