"""The predictors of the tasks zero_shot, knn and anomaly. Each holds the vectors that it compares new vectors with.

They use the functions that evaluate the tasks (`mmtune.evaluation.tasks`), so a prediction is what the evaluation scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.evaluation.tasks.anomaly import AnomalyScoring
from mmtune.evaluation.tasks.anomaly_scorers import AnomalyScorer
from mmtune.evaluation.tasks.knn import nearest, vote_with_share
from mmtune.evaluation.tasks.zero_shot import nearest_class
from mmtune.prediction.alarm_threshold import AlarmThreshold
from mmtune.prediction.prediction_result import Prediction
from mmtune.search.tie_order import tie_order

if TYPE_CHECKING:
    from mmtune.prediction.predict_inputs import PredictInput

SHOWN_CLASSES = 3
"""Number of nearest classes in a zero_shot prediction."""


@dataclass
class Predictor:
    """Base class of predictors of one modality.

    ids: [N], ids of the references (for zero_shot "class: name")
    classes: [N], their classes (for anomaly: all "normal")
    vectors: float32 [N, D], L2-normalised
    neighbours: number of nearest references that count
    threshold: threshold of the anomaly score, or None
    """

    task: ClassVar[str]
    ids: list[str]
    classes: list[str]
    vectors: np.ndarray
    neighbours: int = 1
    threshold: AlarmThreshold | None = None

    def predict(self, inputs: "Sequence[PredictInput]", vectors: np.ndarray) -> list[Prediction]:
        """Return the predictions of inputs with these L2-normalised vectors [Q, D]."""
        raise NotImplementedError

    def _neighbours(self, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return nearest(vectors, self.vectors, self.neighbours, order=tie_order(self.ids))

    def _named(self, scores: np.ndarray, index: np.ndarray) -> tuple[list[str], list[float]]:
        """Return the ids and cosines of one query's neighbours."""
        there = np.isfinite(scores)
        return [self.ids[i] for i in index[there]], [float(s) for s in scores[there]]

    def _alarm(self, score: float) -> bool | None:
        return None if self.threshold is None else bool(score > self.threshold.value)


@dataclass
class KnnPredictor(Predictor):
    """Classify by the votes of the nearest labelled references."""

    task: ClassVar[str] = "knn"

    def predict(self, inputs: "Sequence[PredictInput]", vectors: np.ndarray) -> list[Prediction]:
        classes = sorted(set(self.classes))
        if len(classes) < 2:
            raise DataError(f"{len(classes)} class among the references; classification by neighbours needs at least two")
        number = {c: i for i, c in enumerate(classes)}
        class_N = np.array([number[c] for c in self.classes], np.int64)
        score_QK, index_QK = self._neighbours(vectors)
        predicted, share = vote_with_share(score_QK, class_N[index_QK], len(classes))
        out = []
        for q, one in enumerate(inputs):
            ids, cosines = self._named(score_QK[q], index_QK[q])
            anomaly = 1 - cosines[0]
            out.append(
                Prediction(
                    one.name,
                    str(one.modality),
                    classes[predicted[q]],
                    float(share[q]),
                    ids,
                    cosines,
                    anomaly,
                    self._alarm(anomaly),
                )
            )
        return out


@dataclass
class AnomalyPredictor(Predictor):
    """Score by a scorer that is fitted to the normal references, as the task "anomaly" of `mmtune.evaluate` does.

    scorer, balance: as in `mmtune.evaluate`
    domains: [N], domains of the references, or None; needed for `balance`
    known_ids: [M], ids of known anomalies
    known_vectors: float32 [M, D], L2-normalised; None without known anomalies
    """

    task: ClassVar[str] = "anomaly"
    scorer: str = field(default="nearest", kw_only=True)
    balance: str | None = field(default=None, kw_only=True)
    domains: list[str | None] | None = field(default=None, kw_only=True)
    known_ids: list[str] = field(default_factory=list, kw_only=True)
    known_vectors: np.ndarray | None = field(default=None, kw_only=True)

    @property
    def is_plain(self) -> bool:
        """Whether the score is the mean distance to the nearest references, without known anomalies."""
        return self.scorer == AnomalyScoring.scorer and self.balance is None and self.known_vectors is None

    @cached_property
    def _fitted(self) -> AnomalyScorer:
        domain = dict(zip(self.ids, self.domains, strict=True)) if self.domains is not None else {}
        known = None
        if self.known_vectors is not None:
            known = Embeddings(self.known_ids, [None] * len(self.known_ids), {}, self.known_vectors)
        normal = Embeddings(self.ids, [None] * len(self.ids), {}, self.vectors)
        return AnomalyScoring(self.neighbours, self.scorer, self.balance, domain).fit(normal, known)

    def fit(self) -> None:
        """Fit the scorer now, so that its errors come before anything is predicted or stored."""
        _ = self._fitted

    def predict(self, inputs: "Sequence[PredictInput]", vectors: np.ndarray) -> list[Prediction]:
        scores = np.asarray(self._fitted.score(vectors), np.float64)
        score_QK, index_QK = self._neighbours(vectors)
        out = []
        for q, one in enumerate(inputs):
            ids, cosines = self._named(score_QK[q], index_QK[q])
            score = float(scores[q])
            out.append(Prediction(one.name, str(one.modality), None, score, ids, cosines, score, self._alarm(score)))
        return out


@dataclass
class ZeroShotPredictor(Predictor):
    """Classify by the nearest class name.

    logit_scale: factor on the cosines in the softmax over classes, that of the model
    """

    task: ClassVar[str] = "zero_shot"
    logit_scale: float = field(default=100.0, kw_only=True)

    def predict(self, inputs: "Sequence[PredictInput]", vectors: np.ndarray) -> list[Prediction]:
        names = Embeddings(self.ids, list(self.classes), {}, self.vectors)
        classes = sorted(set(self.classes))
        predicted, cosine_QC = nearest_class(vectors, names)
        logits = self.logit_scale * (cosine_QC - cosine_QC.max(1, keepdims=True))
        probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        out = []
        for q, one in enumerate(inputs):
            c = int(predicted[q])
            rest = [i for i in np.argsort(-cosine_QC[q], kind="stable").tolist() if i != c]
            order = [c, *rest][:SHOWN_CLASSES]
            cosines = [float(cosine_QC[q, i]) for i in order]
            out.append(
                Prediction(
                    one.name, str(one.modality), classes[c], float(probability[q, c]), [classes[i] for i in order], cosines
                )
            )
        return out


PREDICTORS: dict[str, type[Predictor]] = {p.task: p for p in (ZeroShotPredictor, KnnPredictor, AnomalyPredictor)}
"""{task: class}"""
