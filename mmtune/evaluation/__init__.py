"""Retrieval evaluation: metrics in every direction, slices, and evaluation tasks.

For authors of a metric: subclass `Metric`, whose `per_query` gets `RelevantRanks`, and call `register_metric`. For authors of
a task: subclass `EvaluationTask` as a dataclass, whose `run` gets `TaskInputs` and returns `Scores` by modality, and call
`register_task`. Both may also be named as "package.module:Class" where a name would stand.
"""

from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.evaluation.metrics import METRICS, Metric, RelevantRanks, register_metric
from mmtune.evaluation.result import Direction, Result
from mmtune.evaluation.tasks.anomaly import Anomalies, AnomalyDetection
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
    "register_metric",
    "register_task",
]
