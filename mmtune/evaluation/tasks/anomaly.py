"""The task "anomaly": detect anomalies using only normal rows as reference, because faults are rare and new kinds occur.

A row's anomaly score is its mean distance (1 - cosine) to the nearest normal reference rows of the same machine, as in task 2
of the DCASE challenge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings, JsonObject
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.slices import metadata_slices
from mmtune.evaluation.tasks.knn import Exclusion, nearest, source_of_rows
from mmtune.evaluation.tasks.roc import MAX_FPR, auroc, partial_auroc
from mmtune.evaluation.tasks.task import EvaluationTask, TaskInputs, check_neighbours, row_values
from mmtune.relevance.items import names_to_labels, take_rows
from mmtune.search.tie_order import tie_order
from mmtune.search.vectors import normalize_rows

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

NEIGHBOURS = 1
ALL = "all"  # the machine of all rows if no column names machines


@dataclass
class DetectionScores:
    """Numbers of normal and anomalous rows, and areas under the ROC curve, of one machine or averaged over machines."""

    normal: int
    anomalous: int
    auroc: float
    partial_auroc: float


@dataclass
class Anomalies:
    """The result of anomaly detection in one modality.

    direction: the modality
    machines: the scores of each machine
    parts: {"column=value": scores}, with only the anomalous rows of that value and all normal rows, averaged over machines
    skipped: {machine: reason why it was left out}
    scores: {row id: anomaly score}
    max_fpr: largest false positive rate of the partial AUROC
    anomalous, machine_of: whether each scored row is anomalous, and its machine, by row id
    """

    direction: str
    machines: dict[str, DetectionScores]
    parts: dict[str, DetectionScores] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict, repr=False)
    max_fpr: float = MAX_FPR
    anomalous: dict[str, bool] = field(default_factory=dict, repr=False)
    machine_of: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def row_ids(self) -> list[str]:
        """Ids of the scored rows."""
        return list(self.scores)

    def weighted_metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Return the metrics if row i of `row_ids` occurred weights[i] times [N]; machines without both kinds are left out.

        Raises DataError if no machine has normal and anomalous rows.
        """
        ids = self.row_ids
        score, anomalous = np.array([self.scores[i] for i in ids]), np.array([self.anomalous[i] for i in ids], bool)
        machine, areas = np.array([self.machine_of[i] for i in ids]), []
        for m in self.machines:
            at = np.flatnonzero((machine == m) & (weights > 0))
            if len(set(anomalous[at].tolist())) == 2:
                areas.append(_areas(score[at], anomalous[at], self.max_fpr, weights[at]))
        if not areas:
            raise DataError("no machine has normal and anomalous rows")
        mean = mean_scores(areas)
        return {"auroc": mean.auroc, "partial_auroc": mean.partial_auroc}

    @property
    def mean(self) -> DetectionScores:
        """The mean of the areas over machines; row counts are added up."""
        return mean_scores(list(self.machines.values()))

    @property
    def metrics(self) -> dict[str, float]:
        """auroc and partial_auroc, averaged over machines."""
        return {"auroc": self.mean.auroc, "partial_auroc": self.mean.partial_auroc}

    def to_dict(self) -> JsonObject:
        return {
            "direction": self.direction,
            "max_fpr": self.max_fpr,
            "mean": asdict(self.mean),
            "machines": {n: asdict(d) for n, d in self.machines.items()},
            "parts": {n: asdict(d) for n, d in self.parts.items()},
            "skipped": self.skipped,
            "scores": self.scores,
        }

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        lines = [*self.machines.items(), ("mean", self.mean), *((f"  {n}", d) for n, d in self.parts.items())]
        rows = [[n, f"{d.normal:,}", f"{d.anomalous:,}", f"{d.auroc:.4f}", f"{d.partial_auroc:.4f}"] for n, d in lines]
        notes = [f"{n} left out: {why}" for n, why in self.skipped.items()]
        columns = [self.direction, "normal", "anomalous", "AUROC", f"pAUROC@{self.max_fpr:g}"]
        return "\n".join([plain_table(columns, rows), *notes])


@dataclass
class AnomalyDetection(EvaluationTask):
    """Score each row by its distance to normal rows, and measure how well the scores separate anomalous from normal rows.

    normal: "COLUMN=VALUE", which rows are normal; rows without a value are neither normal nor anomalous
    machine: a metadata column; rows are scored only by normal rows with the same value
    reference: DATA with normal rows; default: the normal rows of the evaluated data, where no row is its own reference
    neighbours: number of references over which a score is averaged
    exclude_same: a metadata column, e.g. the recording. Rows with the same value are not references for each other, and
        `reference` must not share a value with the evaluated data.
    slices: metadata columns; the anomalous rows of each value are also evaluated on their own, against all normal rows
    """

    normal: str | None = None
    machine: str | None = None
    reference: "Data | str | None" = None
    neighbours: int = NEIGHBOURS
    exclude_same: str | None = None
    slices: Sequence[str] = ()

    def run(self, inputs: TaskInputs) -> dict[str, Anomalies]:
        check_neighbours(self.neighbours)
        data = inputs.data
        is_normal = normal_rows(data, self.normal)
        reference = None if self.reference is None else inputs.reference_data(self.reference, self.exclude_same)
        if is_normal.all():
            raise DataError(f"{data.spec}: all {len(is_normal)} rows are normal ({self.normal}), so there is nothing to detect")
        parts = metadata_slices(data, self.slices)
        vectors = inputs.embed()
        references: dict[str, Embeddings] = {}
        reference_machine: dict[str, str | None] | None = None
        if reference is not None:
            references = inputs.embed(reference, normal_rows(reference, self.normal))
            reference_machine = _machine_of_rows(reference, self.machine)
        values = row_values(data, str(self.normal).partition("=")[0])
        known = {i: n for i, n, v in zip(data.ids, is_normal.tolist(), values, strict=True) if v is not None}
        return {
            m: detect(
                m,
                e,
                known,
                _machine_of_rows(data, self.machine),
                reference=references.get(m),
                reference_machine=reference_machine,
                source=source_of_rows(data, self.exclude_same),
                parts=parts,
                k=self.neighbours,
            )
            for m, e in vectors.items()
        }


def normal_rows(data: "Data", normal: str | None) -> np.ndarray:
    """bool [N]: which rows are normal. Raises DataError if none is."""
    name, equals, value = (normal or "").partition("=")
    if not equals:
        raise RecipeError('anomaly: state which rows are normal, as "COLUMN=VALUE", e.g. --normal defect=none')
    values = row_values(data, name)
    is_normal = np.array([v == value for v in values], bool)
    if not is_normal.any():
        some = sorted({v for v in values if v is not None})
        raise DataError(
            f"{data.spec}: no row has {name}={value}; there are: {', '.join(some[:8])}{', ...' if some[8:] else ''}"
        )
    return is_normal


def _machine_of_rows(data: "Data", machine: str | None) -> dict[str, str | None]:
    """Return {row id: machine}."""
    return dict(zip(data.ids, row_values(data, machine) if machine else [ALL] * len(data), strict=True))


def mean_scores(scores: Sequence[DetectionScores]) -> DetectionScores:
    """Average the areas and add up the counts."""
    areas = [float(np.mean([getattr(d, a) for d in scores])) for a in ("auroc", "partial_auroc")]
    return DetectionScores(sum(d.normal for d in scores), sum(d.anomalous for d in scores), areas[0], areas[1])


def distances(
    queries: Embeddings, reference: Embeddings, k: int = NEIGHBOURS, exclusion: Exclusion | None = None
) -> np.ndarray:
    """[Q]: mean of 1 - cosine to the `k` nearest references that are not excluded.

    If a query has fewer than `k` references, the mean is over these; NaN if it has none.
    """
    q_QD, r_ND = normalize_rows(queries.vectors, "queries"), normalize_rows(reference.vectors, "references")
    score_QK, _ = nearest(q_QD, r_ND, k, exclusion, tie_order(reference.ids))
    is_there = np.isfinite(score_QK)
    total = np.where(is_there, 1 - np.where(is_there, score_QK, 0.0), 0.0).sum(1)
    return np.where(is_there.any(1), total / np.maximum(is_there.sum(1), 1), np.nan)


def detect(
    name: str,
    rows: Embeddings,
    normal: Mapping[str, bool],
    machine: Mapping[str, str | None],
    *,
    reference: Embeddings | None = None,
    reference_machine: Mapping[str, str | None] | None = None,
    source: Mapping[str, str | None] | None = None,
    parts: Mapping[str, frozenset[str]] | None = None,
    k: int = NEIGHBOURS,
    max_fpr: float = MAX_FPR,
) -> Anomalies:
    """Score `rows` of modality `name` by normal rows of the same machine.

    normal: {row id: whether the row is normal}
    machine: {row id: machine}
    reference: normal rows. Without it, each row is scored by the normal ones among `rows`, except rows with the same content or
        the same source.
    reference_machine: {row id of a reference: machine}
    source: {row id: source, e.g. the recording}
    parts: slices, {name: row ids}
    k: number of references per score

    Raises DataError if no machine can be evaluated.
    """
    machines: dict[str, DetectionScores] = {}
    skipped: dict[str, str] = {}
    scores: dict[str, float] = {}
    anomalous: dict[str, bool] = {}
    machine_of: dict[str, str] = {}
    of_part: dict[str, list[DetectionScores]] = {p: [] for p in parts or {}}
    rows_of: dict[str, list[int]] = {}
    for i, row in enumerate(rows.ids):
        if row in normal and machine.get(row) is not None:
            rows_of.setdefault(str(machine[row]), []).append(i)
    for m in sorted(rows_of):
        at = np.array(rows_of[m], np.int64)
        is_normal = np.array([normal[rows.ids[i]] for i in at], bool)
        if reference is None:
            exclusion = same_source(name, rows, at, is_normal, source)
            score = distances(take_rows(rows, at), take_rows(rows, at[is_normal]), k, exclusion)
        else:
            own = [i for i, r in enumerate(reference.ids) if (reference_machine or {}).get(r) == m]
            if not own:
                skipped[m] = "no normal reference"
                continue
            score = distances(take_rows(rows, at), take_rows(reference, np.array(own, np.int64)), k)
        scored = np.isfinite(score)
        if not scored[is_normal].any() or is_normal.all():
            skipped[m] = "no anomalous row" if is_normal.all() else "no normal row has another normal row as reference"
            continue
        at, is_normal, score = at[scored], is_normal[scored], score[scored]
        machines[m] = _areas(score, ~is_normal, max_fpr)
        scores |= {rows.ids[i]: float(s) for i, s in zip(at, score, strict=True)}
        anomalous |= {rows.ids[i]: not n for i, n in zip(at, is_normal.tolist(), strict=True)}
        machine_of |= {rows.ids[i]: m for i in at}
        for part, ids in (parts or {}).items():
            inside = is_normal | np.array([rows.ids[i] in ids for i in at], bool)
            if not is_normal[inside].all():
                of_part[part].append(_areas(score[inside], ~is_normal[inside], max_fpr))
    if not machines:
        raise DataError(f"{name}: no machine can be evaluated: " + "; ".join(f"{m}: {why}" for m, why in skipped.items()))
    by_part = {p: mean_scores(d) for p, d in of_part.items() if d}
    return Anomalies(name, machines, by_part, skipped, scores, max_fpr, anomalous, machine_of)


def _areas(score: np.ndarray, anomalous: np.ndarray, max_fpr: float, weight: np.ndarray | None = None) -> DetectionScores:
    areas = auroc(score, anomalous, weight), partial_auroc(score, anomalous, max_fpr, weight)
    return DetectionScores(int((~anomalous).sum()), int(anomalous.sum()), *areas)


def same_source(
    name: str, rows: Embeddings, at: np.ndarray, is_normal: np.ndarray, source: Mapping[str, str | None] | None
) -> Exclusion:
    """Label the rows `at` and the normal ones among them; rows of equal content or source get equal labels."""
    content = np.asarray(rows.labels.get(name, np.zeros(len(rows.ids))), np.int64)[at]
    label = np.where(content == 0, np.arange(1, len(at) + 1), content)
    if source is not None:
        source_N = names_to_labels([source.get(rows.ids[i]) for i in at])
        label = np.where(source_N == 0, label, source_N)
    return label, label[is_normal]
