"""Evaluation: metrics in every direction, slices, significance, gate.

The package can be called like a function: `mmtune.evaluate(MODEL, DATA)` is `mmtune.evaluate.evaluate(MODEL, DATA)`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from mmtune.callable import make_callable

if TYPE_CHECKING:
    from mmtune.contracts import Embedded
    from mmtune.evaluate.comparison import Comparison, compare_vectors
    from mmtune.evaluate.directions import evaluate_vectors
    from mmtune.evaluate.gate import Gate
    from mmtune.evaluate.result import Direction, Result
    from mmtune.evaluate.verbs import compare, evaluate

_LAZY = {
    "Embedded": "items",
    "evaluate_vectors": "directions",
    "Direction": "result",
    "Result": "result",
    "compare_vectors": "comparison",
    "Comparison": "comparison",
    "Gate": "gate",
    "evaluate": "verbs",
    "compare": "verbs",
}
__all__ = [
    "Comparison",
    "Direction",
    "Embedded",
    "Gate",
    "Result",
    "compare",
    "compare_vectors",
    "evaluate",
    "evaluate_vectors",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"mmtune.evaluate.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'mmtune.evaluate' has no attribute {name!r}")


make_callable(__name__, "mmtune.evaluate.verbs:evaluate")
