"""Scorers of anomalies: each is fitted to the embeddings of normal rows and scores how unlike them other embeddings are.

A scorer of your own is a class with `fit` and `score`, added by `register_anomaly_scorer` or named as "package.module:Class".
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from mmtune.errors import DataError, RecipeError
from mmtune.runtime import plugins
from mmtune.search.exact import topk
from mmtune.search.vectors import normalize_rows

NEIGHBOURS = 1
BALANCES = ("smote", "mixup")
"""Ways to give the smaller domains as many normal embeddings as the largest one."""


class AnomalyScorer(Protocol):
    """Interface of a scorer. Embeddings are L2-normalised float32.

    Optional attribute: `uses_known = False` of a scorer that has no use for known anomalies, so that they are refused before anything is
    embedded.
    """

    def fit(self, normal_ND: np.ndarray, known_MD: np.ndarray | None) -> None:
        """Learn from N normal embeddings and, if there are any, M embeddings of known anomalies.

        Raises DataError if there are too few, and RecipeError for known anomalies if the scorer has no use for them.
        """
        ...

    def score(self, query_QD: np.ndarray) -> np.ndarray:
        """Return a score for each query [Q]; larger is more anomalous."""
        ...


@dataclass
class NearestScorer:
    """Mean distance (1 - cosine) to the nearest normal embeddings, minus that to the nearest known anomalies if there are any."""

    neighbours: int = NEIGHBOURS

    def fit(self, normal_ND: np.ndarray, known_MD: np.ndarray | None) -> None:
        self._normal, self._known = normal_ND, known_MD

    def score(self, query_QD: np.ndarray) -> np.ndarray:
        far = self._distance(query_QD, self._normal)
        return far if self._known is None else far - self._distance(query_QD, self._known)

    def _distance(self, query_QD: np.ndarray, reference_ND: np.ndarray) -> np.ndarray:
        return (1 - topk(query_QD, reference_ND, min(self.neighbours, len(reference_ND)))[0].astype(np.float64)).mean(1)


@dataclass
class MahalanobisScorer:
    """Mahalanobis distance to the normal embeddings, with a shrunk covariance (Ledoit and Wolf 2004)."""

    uses_known: ClassVar[bool] = False

    def fit(self, normal_ND: np.ndarray, known_MD: np.ndarray | None) -> None:
        from sklearn.covariance import LedoitWolf

        _refuse_known("mahalanobis", known_MD)
        if len(normal_ND) < 2:
            raise DataError(f"mahalanobis: needs at least 2 normal rows of a machine, there is {len(normal_ND)}")
        self._covariance = LedoitWolf().fit(normal_ND.astype(np.float64))

    def score(self, query_QD: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(self._covariance.mahalanobis(query_QD.astype(np.float64)), 0.0))


@dataclass
class GaussianMixtureScorer:
    """Negative log-likelihood under a mixture of Gaussians with diagonal covariances, fitted to the normal embeddings."""

    uses_known: ClassVar[bool] = False
    components: int = 2
    seed: int = 0

    def fit(self, normal_ND: np.ndarray, known_MD: np.ndarray | None) -> None:
        from sklearn.mixture import GaussianMixture

        _refuse_known("gmm", known_MD)
        if len(normal_ND) < 2:
            raise DataError(f"gmm: needs at least 2 normal rows of a machine, there is {len(normal_ND)}")
        components = min(self.components, len(normal_ND) // 2)
        # variances of normalised embeddings are about 1/D, so the regularisation is relative to that
        smallest = 1e-2 / normal_ND.shape[1]
        mixture = GaussianMixture(components, covariance_type="diag", reg_covar=smallest, random_state=self.seed)
        self._mixture = mixture.fit(normal_ND.astype(np.float64))

    def score(self, query_QD: np.ndarray) -> np.ndarray:
        return -self._mixture.score_samples(query_QD.astype(np.float64))


SCORERS: "dict[str, type[AnomalyScorer] | str]" = {
    "nearest": "mmtune.evaluation.tasks.anomaly_scorers:NearestScorer",
    "mahalanobis": "mmtune.evaluation.tasks.anomaly_scorers:MahalanobisScorer",
    "gmm": "mmtune.evaluation.tasks.anomaly_scorers:GaussianMixtureScorer",
}
"""{scorer name: class, or "package.module:Class"}"""


def register_anomaly_scorer(name: str, scorer: "type[AnomalyScorer] | str") -> None:
    """Add a scorer, for the option `scorer` of the task "anomaly"."""
    plugins.register(SCORERS, name, scorer, "anomaly scorer")


def make_scorer(name: str, neighbours: int) -> AnomalyScorer:
    """Return a scorer by name. Raises RecipeError for an unknown name."""
    if name not in SCORERS and not plugins.is_target(name):
        raise RecipeError(f"scorer: unknown {name!r}; there are: {', '.join(SCORERS)} (or package.module:Class)")
    scorer = plugins.resolve(SCORERS, name, "anomaly scorer", key="scorer")
    made: AnomalyScorer = scorer(neighbours) if scorer is NearestScorer else scorer()
    return made


def check_known(name: str, neighbours: int) -> None:
    """Raise RecipeError if a scorer has no use for known anomalies."""
    if not getattr(make_scorer(name, neighbours), "uses_known", True):
        _refuse_known(name, np.zeros((0, 0)))


def balance_domains(normal_ND: np.ndarray, domain_N: np.ndarray, how: str, seed: int = 0) -> np.ndarray:
    """Return the normal embeddings with interpolated ones added, so that every domain has as many as the largest.

    domain_N: domain of each embedding, e.g. "source" or "target"
    how: "smote": between an embedding and one of its 5 nearest of the same domain (Chawla et al. 2002); "mixup": between an
        embedding, with a weight of 0.5 to 1, and one of another domain
    """
    if how not in BALANCES:
        raise RecipeError(f"balance: unknown {how!r}; there are: {', '.join(BALANCES)}")
    rng, parts = np.random.default_rng(seed), [normal_ND]
    names, counts = np.unique(domain_N, return_counts=True)
    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
        missing = int(counts.max()) - count
        if not missing:
            continue
        own, others = normal_ND[domain_N == name], normal_ND[domain_N != name]
        first = own[rng.integers(0, count, missing)]
        if how == "smote":
            near = topk(first, own, min(6, count))[1]  # the embedding itself and its 5 nearest
            second = own[near[np.arange(missing), rng.integers(0, near.shape[1], missing)]]
            weight = rng.random((missing, 1))
        else:
            second = others[rng.integers(0, len(others), missing)]
            weight = 0.5 + 0.5 * rng.random((missing, 1))
        parts.append(normalize_rows((weight * first + (1 - weight) * second).astype(np.float32), "balanced embeddings"))
    return np.concatenate(parts)


def _refuse_known(name: str, known_MD: np.ndarray | None) -> None:
    if known_MD is not None:
        raise RecipeError(f"known_anomalies: the scorer {name} is fitted to normal rows alone; use the scorer nearest")
