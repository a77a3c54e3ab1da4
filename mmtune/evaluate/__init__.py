"""Evaluation: metrics in every direction, slices, significance, gate.

The package can be called like a function: `mmtune.evaluate(MODEL, DATA)` is `mmtune.evaluate.evaluate(MODEL, DATA)`.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

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


class _Verb(ModuleType):
    """A package that is also the verb of its name: importing it may not turn `mmtune.evaluate` into a thing one cannot call."""

    def __getattr__(self, name: str) -> Any:
        if name in _LAZY:
            return getattr(importlib.import_module(f"mmtune.evaluate.{_LAZY[name]}"), name)
        raise AttributeError(f"module 'mmtune.evaluate' has no attribute {name!r}")

    def __call__(self, *args: Any, **kwargs: Any) -> "Result":
        from mmtune.evaluate.verbs import evaluate

        return evaluate(*args, **kwargs)


sys.modules[__name__].__class__ = _Verb
