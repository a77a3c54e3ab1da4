"""The task "anomaly": detect anomalies using only normal rows as reference, because faults are rare and new kinds occur.

Rows are scored by the normal reference rows of the same machine, as in task 2 of the DCASE challenge: by default by the mean
distance (1 - cosine) to the nearest ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.slices import metadata_slices
from mmtune.evaluation.tasks.anomaly_result import Anomalies, DetectionScores, areas_of, domain_areas, mean_scores
from mmtune.evaluation.tasks.anomaly_scorers import (
    BALANCES,
    NEIGHBOURS,
    AnomalyScorer,
    balance_domains,
    check_known,
    make_scorer,
)
from mmtune.evaluation.tasks.knn import Exclusion, nearest, source_of_rows
from mmtune.evaluation.tasks.roc import MAX_FPR
from mmtune.evaluation.tasks.task import EvaluationTask, TaskInputs, check_neighbours, row_values, rows_with_value
from mmtune.relevance.items import names_to_labels, take_rows
from mmtune.search.tie_order import tie_order
from mmtune.search.vectors import normalize_rows

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data

ALL = "all"  # the machine of all rows if no column names machines
FOLDS = 5
"""Number of times that a scorer is fitted to parts of the evaluated rows if there are no reference data."""


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
    scorer: "nearest", "mahalanobis", "gmm", a registered scorer, or "package.module:Class"; see `AnomalyScorer`
    domain: a metadata column, e.g. with the values source and target. Adds the AUROC of each domain and the score of DCASE task 2
    balance: "smote" or "mixup": add interpolated normal embeddings to the smaller domains; needs `domain`
    known_anomalies: use the rows of `reference` that are not normal as known anomalies; rows near to them score higher
    """

    normal: str | None = None
    machine: str | None = None
    reference: "Data | str | None" = None
    neighbours: int = NEIGHBOURS
    exclude_same: str | None = None
    slices: Sequence[str] = ()
    scorer: str = "nearest"
    domain: str | None = None
    balance: str | None = None
    known_anomalies: bool = False

    def run(self, inputs: TaskInputs) -> dict[str, Anomalies]:
        self._check()
        data = inputs.data
        is_normal = normal_rows(data, self.normal)
        reference = None if self.reference is None else inputs.reference_data(self.reference, self.exclude_same)
        if is_normal.all():
            raise DataError(f"{data.spec}: all {len(is_normal)} rows are normal ({self.normal}), so there is nothing to detect")
        parts = metadata_slices(data, self.slices)
        vectors = inputs.embed()
        references: dict[str, Embeddings] = {}
        known_anomalies: dict[str, Embeddings] = {}
        reference_machine: dict[str, str | None] | None = None
        if reference is not None:
            reference_normal = normal_rows(reference, self.normal)
            references = inputs.embed(reference, reference_normal)
            reference_machine = column_of_rows(reference, self.machine)
            if self.known_anomalies:
                known_anomalies = inputs.embed(reference, anomalous_rows(reference, self.normal, reference_normal))
        domains = {} if self.domain is None else self._domains(data, reference)
        values = row_values(data, str(self.normal).partition("=")[0])
        known = {i: n for i, n, v in zip(data.ids, is_normal.tolist(), values, strict=True) if v is not None}
        return {
            m: detect(
                m,
                e,
                known,
                column_of_rows(data, self.machine),
                reference=references.get(m),
                reference_machine=reference_machine,
                known=known_anomalies.get(m),
                source=source_of_rows(data, self.exclude_same),
                parts=parts,
                scoring=AnomalyScoring(self.neighbours, self.scorer, self.balance, domains),
            )
            for m, e in vectors.items()
        }

    def _check(self) -> None:
        AnomalyScoring(self.neighbours, self.scorer, self.balance).check(self.domain, self.known_anomalies)
        if self.known_anomalies and self.reference is None:
            raise RecipeError("known_anomalies: they are rows of the reference data; give --reference DATA as well")

    def _domains(self, data: "Data", reference: "Data | None") -> dict[str, str | None]:
        """Return {row id: domain} of the evaluated rows and the references, which share no id (`refuse_shared_rows`)."""
        domains = column_of_rows(data, self.domain)
        if reference is not None:
            domains = {**column_of_rows(reference, self.domain), **domains}
        if not any(d is not None for d in domains.values()):
            raise DataError(f"{data.spec}: no row has a value in the column {self.domain} of the domains")
        return domains


def normal_rows(data: "Data", normal: str | None) -> np.ndarray:
    """bool [N]: which rows are normal. Raises DataError if none is."""
    if normal is None or "=" not in normal:
        raise RecipeError('anomaly: state which rows are normal, as "COLUMN=VALUE", e.g. --normal defect=none')
    return rows_with_value(data, normal)


def column_of_rows(data: "Data", column: str | None) -> dict[str, str | None]:
    """Return {row id: value of the column}; without a column, all rows have the value `ALL`."""
    return dict(zip(data.ids, row_values(data, column) if column else [ALL] * len(data), strict=True))


def anomalous_rows(data: "Data", normal: str | None, is_normal: np.ndarray) -> np.ndarray:
    """bool [N]: rows that have a value that is not the normal one. Raises DataError if there is none."""
    there = np.array([v is not None for v in row_values(data, str(normal).partition("=")[0])], bool)
    if not (there & ~is_normal).any():
        raise DataError(f"{data.spec}: known_anomalies: every row is normal ({normal}) or has no value")
    return there & ~is_normal


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


@dataclass(frozen=True)
class AnomalyScoring:
    """How rows are scored by normal rows: the same for the evaluation and for predictions, see `AnomalyDetection`.

    domain: {row id: domain} of the evaluated rows and the references
    """

    neighbours: int = NEIGHBOURS
    scorer: str = "nearest"
    balance: str | None = None
    domain: Mapping[str, str | None] = field(default_factory=dict)

    def check(self, domain_column: str | None, use_known: bool = False) -> None:
        """Raise RecipeError for an unknown scorer or balance, for a balance without the column of the domains, and for known anomalies
        of which the scorer makes no use."""
        check_neighbours(self.neighbours)
        make_scorer(self.scorer, self.neighbours)
        if use_known:
            check_known(self.scorer, self.neighbours)
        if self.balance is not None and self.balance not in BALANCES:
            raise RecipeError(f"balance: unknown {self.balance!r}; there are: {', '.join(BALANCES)}")
        if self.balance is not None and domain_column is None:
            raise RecipeError("balance: name the metadata column of the domains as well (--domain COLUMN)")

    def fit(self, normal: Embeddings, known: Embeddings | None = None) -> AnomalyScorer:
        """Return a scorer that is fitted to all of `normal`, and to the known anomalies if there are any.

        The order of the rows makes no difference, also where embeddings are interpolated at random.
        """
        normal = take_rows(normal, np.array(sorted(range(len(normal.ids)), key=normal.ids.__getitem__), np.int64))
        normal_ND = normalize_rows(normal.vectors, "references")
        if self.balance is not None:
            domains = [self.domain.get(i) for i in normal.ids]
            there = np.array([d is not None for d in domains], bool)
            named = np.array([d for d in domains if d is not None], object)
            normal_ND = np.concatenate([balance_domains(normal_ND[there], named, self.balance), normal_ND[~there]])
        scorer = make_scorer(self.scorer, self.neighbours)
        scorer.fit(normal_ND, None if known is None else normalize_rows(known.vectors, "known anomalies"))
        return scorer

    def by_scorer(self, query: Embeddings, normal: Embeddings, known: Embeddings | None) -> np.ndarray:
        """[Q]: scores of a scorer that is fitted to all of `normal`, and to the known anomalies if there are any."""
        return np.asarray(self.fit(normal, known).score(normalize_rows(query.vectors, "queries")), np.float64)

    def among_themselves(
        self, rows: Embeddings, is_normal: np.ndarray, exclusion: Exclusion, *, use_known: bool = False, folds: int = FOLDS
    ) -> np.ndarray:
        """[N]: scores of rows by the normal ones among them, never by rows with the same exclusion label.

        The nearest neighbours of each row are searched among all others. Scorers that are fitted are fitted once for each of
        `folds` parts, each time without the rows that they then score. NaN for rows without a reference.

        use_known: the rows that are not normal are known anomalies, which also count in the scores of the other rows
        """
        label, normal_at, known_at = exclusion[0], np.flatnonzero(is_normal), np.flatnonzero(~is_normal)
        if self.scorer == "nearest" and self.balance is None:
            score = distances(rows, take_rows(rows, normal_at), self.neighbours, exclusion)
            if use_known:
                score = score - distances(rows, take_rows(rows, known_at), self.neighbours, (label, label[known_at]))
            return score
        fold = np.unique(label, return_inverse=True)[1] % folds
        score = np.full(len(rows.ids), np.nan)
        for f in np.unique(fold):
            fitted = normal_at[fold[normal_at] != f]
            for of_kind in (
                is_normal,
                ~is_normal,
            ):  # few known anomalies may all be in one part, which must not cost normal rows
                held_out = np.flatnonzero((fold == f) & of_kind)
                others = known_at[~np.isin(label[known_at], label[held_out])]
                if len(held_out) and len(fitted) and (len(others) or not use_known):
                    known = take_rows(rows, others) if use_known else None
                    score[held_out] = self.by_scorer(take_rows(rows, held_out), take_rows(rows, fitted), known)
        return score


def detect(
    name: str,
    rows: Embeddings,
    normal: Mapping[str, bool],
    machine: Mapping[str, str | None],
    *,
    reference: Embeddings | None = None,
    reference_machine: Mapping[str, str | None] | None = None,
    known: Embeddings | None = None,
    source: Mapping[str, str | None] | None = None,
    parts: Mapping[str, frozenset[str]] | None = None,
    scoring: AnomalyScoring = AnomalyScoring(),  # noqa: B008 (frozen)
    max_fpr: float = MAX_FPR,
) -> Anomalies:
    """Score `rows` of modality `name` by normal rows of the same machine.

    normal: {row id: whether the row is normal}
    machine: {row id: machine}
    reference: normal rows. Without it, each row is scored by the normal ones among `rows`, except rows with the same content or
        the same source.
    reference_machine: {row id of a reference or known anomaly: machine}
    known: known anomalies
    source: {row id: source, e.g. the recording}
    parts: slices, {name: row ids}

    Raises DataError if no machine can be evaluated.
    """
    out = Anomalies(name, {}, max_fpr=max_fpr)
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
            score = scoring.among_themselves(take_rows(rows, at), is_normal, exclusion)
        else:
            own = _of_machine(reference, m, reference_machine)
            if own is None:
                out.skipped[m] = "no normal reference"
                continue
            faults = None if known is None else _of_machine(known, m, reference_machine)
            score = scoring.by_scorer(take_rows(rows, at), own, faults)
        scored = np.isfinite(score)
        if not scored[is_normal].any() or is_normal.all():
            out.skipped[m] = "no anomalous row" if is_normal.all() else "no normal row has another normal row as reference"
            continue
        at, is_normal, score = at[scored], is_normal[scored], score[scored]
        ids = [rows.ids[i] for i in at]
        domain_N = np.array([scoring.domain.get(i) for i in ids], object)
        out.machines[m] = areas_of(score, ~is_normal, max_fpr)
        if areas := domain_areas(score, ~is_normal, domain_N):
            out.domains[m] = areas
        out.scores |= dict(zip(ids, score.tolist(), strict=True))
        out.anomalous |= dict(zip(ids, (~is_normal).tolist(), strict=True))
        out.machine_of |= dict.fromkeys(ids, m)
        out.domain_of |= dict(zip(ids, domain_N.tolist(), strict=True))
        for part, members in (parts or {}).items():
            inside = is_normal | np.array([i in members for i in ids], bool)
            if not is_normal[inside].all():
                of_part[part].append(areas_of(score[inside], ~is_normal[inside], max_fpr))
    if not out.machines:
        reasons = "; ".join(f"{m}: {why}" for m, why in out.skipped.items())
        raise DataError(f"{name}: no machine can be evaluated: {reasons}")
    out.parts = {p: mean_scores(d) for p, d in of_part.items() if d}
    return out


def _of_machine(rows: Embeddings, machine: str, machine_of: Mapping[str, str | None] | None) -> Embeddings | None:
    own = [i for i, row in enumerate(rows.ids) if (machine_of or {}).get(row) == machine]
    return take_rows(rows, np.array(own, np.int64)) if own else None


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
