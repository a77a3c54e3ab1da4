"""Never judge a model on what it was trained on."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

UNIQUE = 0.9  # a modality whose contents are distinct in this share of the rows identifies rows; a class name does not


def trained_rows(vectors: Mapping[str, Embeddings], trained: Mapping[str, "np.ndarray | set[int]"]) -> dict[str, str]:
    """Row id -> why it counts as trained on. `trained`: int64 labels of the training rows by key ("id" and modalities).

    A row was trained on when its id was, or a content that identifies rows was, or all of its contents were. Contents that
    repeat between rows (the class name as a caption) identify nobody: alone they refuse nothing.
    """
    seen = {k: np.unique(np.fromiter(v, np.int64, len(v))) for k, v in trained.items()}
    why: dict[str, str] = {}
    hits: dict[str, list[bool]] = {}
    for name, e in vectors.items():
        id_label, content = e.labels.get("id"), e.labels.get(name)
        if id_label is not None and "id" in seen:
            for i in np.flatnonzero(np.isin(id_label, seen["id"]) & (id_label != 0)).tolist():
                why.setdefault(e.ids[i], "its id was trained on")
        if content is None or name not in seen:
            hit = np.zeros(len(e.ids), bool)
        else:
            hit = np.isin(content, seen[name]) & (content != 0)
            if len(np.unique(content)) >= UNIQUE * len(content):
                for i in np.flatnonzero(hit).tolist():
                    why.setdefault(e.ids[i], f"its {name} was trained on")
        for i, row in enumerate(e.ids):
            hits.setdefault(row, []).append(bool(hit[i]))
    for row, all_of in hits.items():
        if all(all_of):
            why.setdefault(row, "all of its contents were trained on")
    return why


def refuse_trained(vectors: Mapping[str, Embeddings], trained: "Mapping[str, np.ndarray | set[int]] | None", what: str) -> None:
    """Raise DataError when any row of `vectors` was trained on by the model called `what`; None means nothing is known."""
    why = trained_rows(vectors, trained) if trained else {}
    if why:
        rows = {r for e in vectors.values() for r in e.ids}
        row = min(why)
        raise DataError(
            f"{what} was trained on {len(why)} of these {len(rows)} rows (row {row!r}: {why[row]}); a score on them proves "
            "nothing: evaluate on rows it has not seen"
        )


def identity(data: "Data", modality: str) -> Embeddings:
    """The rows that have `modality`, without vectors: enough to ask whether they were trained on."""
    at = np.flatnonzero(data.present[modality])
    labels = {k: v[at] for k, v in data.labels.items()}
    return Embeddings([data.ids[i] for i in at], [data.groups[i] for i in at], labels, np.empty((len(at), 0), np.float32))


def refuse_shared(data: "Data", reference: "Data", names: list[str], column: str | None = None) -> None:
    """Raise DataError when a row of `data`, by id or by what it holds in modalities `names`, lies in `reference` too; or a
    value of `column` (a recording, an individual machine): what was cut from one thing knows its sister."""
    known = {k: np.unique(reference.labels[k]) for k in ("id", *names) if k in reference.labels}
    why = trained_rows({m: identity(data, m) for m in names}, known)
    if why:
        row = min(why)
        said = why[row].replace("was trained on", "is there").replace("were trained on", "are there")
        raise DataError(
            f"{reference.spec}: {len(why)} of the {len(data)} rows of {data.spec} are among the references (row {row!r}: "
            f"{said}); a neighbour that is the thing itself proves nothing: take them out"
        )
    if column is not None:
        both = values_of(data, column) & values_of(reference, column)
        if both:
            raise DataError(
                f"{reference.spec}: {len(both)} values of {column!r} are in {data.spec} too, e.g. {min(both)!r}; what is "
                "judged and what it is judged by must not come from one of these: split by it"
            )


def values_of(data: "Data", column: str) -> set[str]:
    """Distinct values of a metadata column, empty ones left out."""
    return {str(v) for v in data.column(column) if v not in (None, "")}
