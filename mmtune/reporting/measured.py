"""Both models' vectors of the test data and their comparison, computed once. Every section of a report reads from here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mmtune.comparison.compare_models import ComparedModel, assemble_comparison
from mmtune.comparison.comparison_result import Comparison
from mmtune.comparison.gate import Gate
from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.model.artifact.trained_rows import trained_on
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.judgments import Qrels
from mmtune.relevance.positives import relevant_blocks
from mmtune.reporting.subject import ReportSubject
from mmtune.search.exact_scores import exact_keys

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

MAX_SLICE_VALUES = 40  # a column with more values is sliced only on request
MAX_SLICE_COLUMNS = 4
SIDES = ("before", "after")


@dataclass
class Measured:
    """The test data, the comparison, and the vectors of both models.

    vectors[side][modality] for the sides "before" and "after"; qrels: judgments, where they and not groups decide what is
    relevant; classes[side][modality]: vectors of captions as class names, where that model has a prompt for these.
    """

    data: "Data"
    comparison: Comparison
    vectors: dict[str, dict[str, Embeddings]]
    qrels: Qrels | None = None
    classes: dict[str, dict[str, Embeddings]] = field(default_factory=dict)

    @cached_property
    def items(self) -> dict[str, dict[str, Items]]:
        """items[side][modality]; the same items in the same order on both sides."""
        return {side: {m: unique_items(m, e) for m, e in vectors.items()} for side, vectors in self.vectors.items()}

    @cached_property
    def row_number(self) -> dict[str, int]:
        """Row id -> row number in the data."""
        return {row_id: i for i, row_id in enumerate(self.data.ids)}

    @property
    def cross_modal_directions(self) -> list[str]:
        """Directions between different modalities; all directions where there is only one modality."""
        names = list(self.comparison.base.directions)
        return [n for n in names if len(set(n.split("->"))) == 2] or names

    def items_of(self, name: str, side: str) -> tuple[Items, Items]:
        """(query items, candidate items) of a direction."""
        a, b = name.split("->")
        return self.items[side][a], self.items[side][b]

    def relevant_items(self, name: str) -> list[np.ndarray]:
        """For each query item of a direction, the positions of its relevant candidates."""
        queries, candidates = self.items_of(name, "before")
        out: list[np.ndarray] = []
        for part in relevant_blocks(queries, candidates, 4096, self.qrels):
            out.extend(part.items[i] for i in range(part.stop - part.start))
        return out

    def score_keys(self, name: str, side: str, queries_Q: np.ndarray) -> np.ndarray:
        """Sortable scores (int32 [Q, candidates]) of some query items; within one modality the query item itself comes last."""
        queries, candidates = self.items_of(name, side)
        keys = exact_keys(queries.query_vectors[queries_Q], candidates.vectors)
        if queries is candidates:
            keys[np.arange(len(keys)), queries_Q] = np.iinfo(np.int32).min
        return keys


def measure(
    subject: ReportSubject,
    slices: Sequence[str] | None = None,
    retention: str | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    qrels: "Qrels | str | Path | None" = None,
) -> Measured:
    """Embed the subject's data with both models and compare.

    slices: metadata columns or "size:MODALITY"; None: the columns of few values, and those that the gate's guards name.
    retention: other DATA for the slice of that name; qrels: judgments, or their file, that alone decide what is relevant.
    Raises DataError for rows that either model was trained on.
    """
    from mmtune.data.shards.dataset import open_data
    from mmtune.embedding.embed_rows import embed_classes
    from mmtune.model import artifact

    rows = open_data(subject.data)  # type: ignore[arg-type]
    retention = retention or subject.retention
    gate = Gate.read(subject.gate)
    models: dict[str, Model] = {}
    for side, model in zip(SIDES, (subject.base, subject.candidate), strict=True):
        assert model is not None, "a subject with data has both models"
        models[side] = artifact.load(model) if isinstance(model, str | Mapping) else model
    _check_fingerprints(subject, models)
    base, candidate = (
        ComparedModel(models[side], name, trained_on(models[side]))
        for side, name in zip(SIDES, ("the base", "the candidate"), strict=True)
    )
    assembled = assemble_comparison(
        base,
        candidate,
        rows,
        gate=gate,
        qrels=qrels,
        slices=_slice_columns(rows, gate) if slices is None else slices,
        retention=open_data(retention) if retention else None,
        batch_size=batch_size,
        quiet=quiet,
    )
    classes = {side: embed_classes(models[side], rows, list(assembled.base), batch_size, quiet) for side in SIDES}
    vectors = dict(zip(SIDES, (assembled.base, assembled.candidate), strict=True))
    return Measured(rows, assembled.comparison, vectors, assembled.qrels, classes)


def _check_fingerprints(subject: ReportSubject, models: "Mapping[str, Model]") -> None:
    """A comparison's document must be of these very models."""
    marks = subject.document.get("fingerprints", {})
    for side, key in zip(SIDES, ("base", "candidate"), strict=True):
        fingerprint = models[side].fingerprint
        if marks.get(key, fingerprint) != fingerprint:
            raise DataError(f"{subject.title}: the comparison's {key} is {marks[key]}, the --{key} given is {fingerprint}")


def _slice_columns(data: "Data", gate: Gate | None) -> list[str]:
    """Metadata columns of 2 to MAX_SLICE_VALUES values, those with the fewest first; and what guards such as "kind=even" name."""
    guarded = [g.partition("=")[0] for g in (gate.guards if gate else {}) if "=" in g]
    values: dict[str, set[str]] = {}
    for i in range(min(len(data), 20_000)):
        for name, value in data.meta(i).items():
            if isinstance(value, str | int | float | bool) and len(values.setdefault(name, set())) <= MAX_SLICE_VALUES:
                values[name].add(str(value))
    few = sorted((len(v), n) for n, v in values.items() if 2 <= len(v) <= MAX_SLICE_VALUES)
    return list(dict.fromkeys([*guarded, *(n for _, n in few[:MAX_SLICE_COLUMNS])]))
