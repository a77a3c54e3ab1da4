"""Retrieval evaluation: metrics in every direction, slices, and evaluation tasks.

To add a metric, subclass `Metric`, whose method `per_query` gets `RelevantRanks`, and call `register_metric`. To add a task,
write a dataclass that subclasses `EvaluationTask`, whose method `run` gets `TaskInputs` and returns {modality: `Scores`}, and
call `register_task`. To add an anomaly scorer, write a class with `fit` and `score` (see `AnomalyScorer`), and call
`register_anomaly_scorer`. Instead of registering a class you can name it as
"package.module:Class" wherever a metric, task or scorer is named.
"""

from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.evaluation.metrics import METRICS, Metric, RelevantRanks, register_metric
from mmtune.evaluation.result import Direction, Result
from mmtune.evaluation.tasks.anomaly import AnomalyDetection
from mmtune.evaluation.tasks.anomaly_result import Anomalies
from mmtune.evaluation.tasks.anomaly_scorers import AnomalyScorer, register_anomaly_scorer
from mmtune.evaluation.tasks.classified import Classified
from mmtune.evaluation.tasks.evaluate_task import TaskResult
from mmtune.evaluation.tasks.knn import NearestNeighbours
from mmtune.evaluation.tasks.task import TASKS, EvaluationTask, Scores, TaskInputs, TaskScores, register_task
from mmtune.evaluation.tasks.zero_shot import ZeroShot

__all__ = [
    "METRICS",
    "TASKS",
    "Anomalies",
    "AnomalyDetection",
    "AnomalyScorer",
    "Classified",
    "Direction",
    "EvaluationTask",
    "Metric",
    "NearestNeighbours",
    "RelevantRanks",
    "Result",
    "Scores",
    "TaskInputs",
    "TaskResult",
    "TaskScores",
    "ZeroShot",
    "evaluate",
    "evaluate_vectors",
    "register_anomaly_scorer",
    "register_metric",
    "register_task",
]
