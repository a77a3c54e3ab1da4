"""Results of anomaly detection: areas under the ROC curve by machine and domain, and the score of DCASE task 2."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property

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

    @cached_property
    def _columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(score, whether anomalous, machine, domain) of each row of `row_ids` [N]; thousands of resamples use them."""
        ids = self.row_ids
        score, anomalous = np.array([self.scores[i] for i in ids]), np.array([self.anomalous[i] for i in ids], bool)
        machine, domain = [np.array([of.get(i) for i in ids], object) for of in (self.machine_of, self.domain_of)]
        return score, anomalous, machine, domain

    def weighted_metrics(self, weights: np.ndarray) -> dict[str, float]:
        """Return the metrics if row i of `row_ids` occurred weights[i] times [N]; machines without both kinds are left out.

        Raises DataError if no machine has normal and anomalous rows.
        """
        score, anomalous, machine, domain = self._columns
        areas, domains = [], []
        for m in self.machines:
            at = np.flatnonzero((machine == m) & (weights > 0))
            if len(set(anomalous[at].tolist())) == 2:
                areas.append(areas_of(score[at], anomalous[at], self.max_fpr, weights[at]))
                domains.append(domain_areas(score[at], anomalous[at], domain[at], weights[at]))
        if not areas:
            raise DataError("no machine has normal and anomalous rows")
        return self._metrics(areas, domains)

    @property
    def mean(self) -> DetectionScores:
        """The mean of the areas over machines; row counts are added up."""
        return mean_scores(list(self.machines.values()))

    @property
    def domain_names(self) -> list[str]:
        """The domains of all machines, sorted."""
        return sorted({d for of in self.domains.values() for d in of})

    @property
    def metrics(self) -> dict[str, float]:
        """auroc and partial_auroc, averaged over machines; of several machines also their harmonic means over machines.

        With domains also `auroc[DOMAIN]`, the harmonic mean over machines of the AUROC of that domain, and `dcase_score`.
        """
        return self._metrics(list(self.machines.values()), [self.domains.get(m, {}) for m in self.machines])

    def _metrics(self, areas: Sequence[DetectionScores], domains: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The metrics of some machines. Raises DataError if a domain has no normal row, e.g. in a resample."""
        mean = mean_scores(areas)
        metrics = {"auroc": mean.auroc, "partial_auroc": mean.partial_auroc}
        if len(self.machines) > 1:
            metrics["auroc_hmean"] = harmonic_mean([a.auroc for a in areas])
            metrics["partial_auroc_hmean"] = harmonic_mean([a.partial_auroc for a in areas])
        for domain in self.domain_names:
            values = [of[domain] for of in domains if domain in of]
            if not values:
                raise DataError(f"no normal row is of the domain {domain}")
            metrics[f"auroc[{domain}]"] = harmonic_mean(values)
        return {**metrics, "dcase_score": dcase_score(areas, domains)} if self.domains else metrics

    def of_machine(self, machine: str) -> "Anomalies":
        """The result of one machine alone."""
        ids = [i for i, m in self.machine_of.items() if m == machine]
        part = replace(self, machines={machine: self.machines[machine]}, parts={}, skipped={})
        part.domains = {machine: self.domains[machine]} if machine in self.domains else {}
        part.scores = {i: self.scores[i] for i in ids}
        return part

    def to_dict(self) -> JsonObject:
        several = {"harmonic_mean": self._harmonic()} if len(self.machines) > 1 else {}
        return {
            "direction": self.direction,
            "max_fpr": self.max_fpr,
            "mean": asdict(self.mean),
            **several,
            "machines": {n: asdict(d) for n, d in self.machines.items()},
            "parts": {n: asdict(d) for n, d in self.parts.items()},
            **({"domains": self.domains, "dcase_score": self.metrics["dcase_score"]} if self.domains else {}),
            "skipped": self.skipped,
            "scores": self.scores,
        }

    def _harmonic(self) -> JsonObject:
        """The harmonic means over machines."""
        metrics = self.metrics
        out: JsonObject = {"auroc": metrics["auroc_hmean"], "partial_auroc": metrics["partial_auroc_hmean"]}
        return {**out, "domains": {d: metrics[f"auroc[{d}]"] for d in self.domain_names}} if self.domains else out

    def __str__(self) -> str:
        from mmtune.evaluation.result_tables import plain_table

        names, metrics = self.domain_names, self.metrics
        lines = [(n, d, self.domains.get(n, {})) for n, d in self.machines.items()]
        means = {d: float(np.mean([of[d] for of in self.domains.values() if d in of])) for d in names}
        lines += [("mean", self.mean, means), *((f"  {n}", d, {}) for n, d in self.parts.items())]
        if len(self.machines) > 1:
            harmonic = replace(self.mean, auroc=metrics["auroc_hmean"], partial_auroc=metrics["partial_auroc_hmean"])
            at = len(self.machines) + 1
            lines.insert(at, ("harmonic mean", harmonic, {d: metrics[f"auroc[{d}]"] for d in names}))
        rows = [
            [n, f"{d.normal:,}", f"{d.anomalous:,}", f"{d.auroc:.4f}", f"{d.partial_auroc:.4f}"]
            + [f"{of[domain]:.4f}" if domain in of else "" for domain in names]
            for n, d, of in lines
        ]
        notes = [f"{n} left out: {why}" for n, why in self.skipped.items()]
        if self.domains:
            notes = [f"DCASE score: {metrics['dcase_score']:.4f}", *notes]
        columns = [self.direction, "normal", "anomalous", "AUROC", f"pAUROC@{self.max_fpr:g}", *(f"AUROC {d}" for d in names)]
        return "\n".join([plain_table(columns, rows), *notes])


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean; a value of 0 gives nearly 0."""
    return float(len(values) / np.sum(1 / np.maximum(values, np.finfo(np.float64).eps)))


def dcase_score(areas: Sequence[DetectionScores], domains: Sequence[Mapping[str, float]]) -> float:
    """The score of DCASE task 2: the harmonic mean of the AUROC of each machine and domain and the partial AUROC of each machine.

    areas, domains: the areas of each machine, and its {domain: AUROC}. Source: Dohi et al. 2023, arXiv 2305.07828, equation 3.
    """
    return harmonic_mean([a.partial_auroc for a in areas] + [v for of in domains for v in of.values()])


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


def mean_scores(scores: Sequence[DetectionScores]) -> DetectionScores:
    """Average the areas and add up the counts."""
    areas = [float(np.mean([getattr(d, a) for d in scores])) for a in ("auroc", "partial_auroc")]
    return DetectionScores(sum(d.normal for d in scores), sum(d.anomalous for d in scores), areas[0], areas[1])


def areas_of(score: np.ndarray, anomalous: np.ndarray, max_fpr: float, weight: np.ndarray | None = None) -> DetectionScores:
    areas = auroc(score, anomalous, weight), partial_auroc(score, anomalous, max_fpr, weight)
    return DetectionScores(int((~anomalous).sum()), int(anomalous.sum()), *areas)
