"""Results of anomaly detection: areas under the ROC curve by machine and domain, and the score of DCASE task 2."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.evaluation.tasks.roc import MAX_FPR, auroc, partial_auroc


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
    anomalous, machine_of, domain_of: whether each scored row is anomalous, its machine and its domain, by row id
    domains: {machine: {domain: AUROC of the normal rows of this domain against all anomalous rows of the machine}}
    """

    direction: str
    machines: dict[str, DetectionScores]
    parts: dict[str, DetectionScores] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict, repr=False)
    max_fpr: float = MAX_FPR
    anomalous: dict[str, bool] = field(default_factory=dict, repr=False)
    machine_of: dict[str, str] = field(default_factory=dict, repr=False)
    domain_of: dict[str, str | None] = field(default_factory=dict, repr=False)
    domains: dict[str, dict[str, float]] = field(default_factory=dict)

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
        machine, domain = [np.array([of.get(i) for i in ids], object) for of in (self.machine_of, self.domain_of)]
        areas, domains = [], []
        for m in self.machines:
            at = np.flatnonzero((machine == m) & (weights > 0))
            if len(set(anomalous[at].tolist())) == 2:
                areas.append(areas_of(score[at], anomalous[at], self.max_fpr, weights[at]))
                domains.append(domain_areas(score[at], anomalous[at], domain[at], weights[at]))
        if not areas:
            raise DataError("no machine has normal and anomalous rows")
        return _metrics(areas, domains if self.domains else [])

    @property
    def mean(self) -> DetectionScores:
        """The mean of the areas over machines; row counts are added up."""
        return mean_scores(list(self.machines.values()))

    @property
    def metrics(self) -> dict[str, float]:
        """auroc and partial_auroc, averaged over machines; with domains also `dcase_score`."""
        return _metrics(list(self.machines.values()), [self.domains.get(m, {}) for m in self.machines] if self.domains else [])

    def to_dict(self) -> JsonObject:
        return {
            "direction": self.direction,
            "max_fpr": self.max_fpr,
            "mean": asdict(self.mean),
            "machines": {n: asdict(d) for n, d in self.machines.items()},
            "parts": {n: asdict(d) for n, d in self.parts.items()},
            **({"domains": self.domains, "dcase_score": self.metrics["dcase_score"]} if self.domains else {}),
            "skipped": self.skipped,
            "scores": self.scores,
        }

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        lines = [*self.machines.items(), ("mean", self.mean), *((f"  {n}", d) for n, d in self.parts.items())]
        rows = [[n, f"{d.normal:,}", f"{d.anomalous:,}", f"{d.auroc:.4f}", f"{d.partial_auroc:.4f}"] for n, d in lines]
        notes = [f"{n} left out: {why}" for n, why in self.skipped.items()]
        if self.domains:
            areas = "; ".join(f"{m} " + ", ".join(f"{d} {a:.4f}" for d, a in of.items()) for m, of in self.domains.items())
            notes = [f"AUROC by domain: {areas}", f"DCASE score: {self.metrics['dcase_score']:.4f}", *notes]
        columns = [self.direction, "normal", "anomalous", "AUROC", f"pAUROC@{self.max_fpr:g}"]
        return "\n".join([plain_table(columns, rows), *notes])


def dcase_score(areas: Sequence[DetectionScores], domains: Sequence[Mapping[str, float]]) -> float:
    """The score of DCASE task 2: the harmonic mean of the AUROC of each machine and domain and the partial AUROC of each machine.

    areas, domains: the areas of each machine, and its {domain: AUROC}. Source: Dohi et al. 2023, arXiv 2305.07828, equation 3.
    """
    values = [a.partial_auroc for a in areas] + [v for of in domains for v in of.values()]
    return float(len(values) / np.sum(1 / np.maximum(values, np.finfo(np.float64).eps)))


def domain_areas(
    score_N: np.ndarray, anomalous_N: np.ndarray, domain_N: np.ndarray, weight_N: np.ndarray | None = None
) -> dict[str, float]:
    """Return {domain: AUROC} of one machine: the normal rows of each domain against all anomalous rows.

    domain_N: object array of domains; rows with None are of no domain
    """
    out = {}
    for domain in sorted({d for d in domain_N[~anomalous_N] if d is not None}):
        at = anomalous_N | (domain_N == domain)
        out[str(domain)] = auroc(score_N[at], anomalous_N[at], None if weight_N is None else weight_N[at])
    return out


def _metrics(areas: Sequence[DetectionScores], domains: Sequence[Mapping[str, float]]) -> dict[str, float]:
    mean = mean_scores(areas)
    metrics = {"auroc": mean.auroc, "partial_auroc": mean.partial_auroc}
    return {**metrics, "dcase_score": dcase_score(areas, domains)} if domains else metrics


def mean_scores(scores: Sequence[DetectionScores]) -> DetectionScores:
    """Average the areas and add up the counts."""
    areas = [float(np.mean([getattr(d, a) for d in scores])) for a in ("auroc", "partial_auroc")]
    return DetectionScores(sum(d.normal for d in scores), sum(d.anomalous for d in scores), areas[0], areas[1])


def areas_of(score: np.ndarray, anomalous: np.ndarray, max_fpr: float, weight: np.ndarray | None = None) -> DetectionScores:
    areas = auroc(score, anomalous, weight), partial_auroc(score, anomalous, max_fpr, weight)
    return DetectionScores(int((~anomalous).sum()), int(anomalous.sum()), *areas)
