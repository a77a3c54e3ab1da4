"""Retrieval evaluation: metrics in every direction, slices, and evaluation tasks."""

from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.evaluation.result import Direction, Result

__all__ = ["Direction", "Result", "evaluate", "evaluate_vectors"]
