"""Rooms that are also the verb of their name: `mmtune.train(...)` runs a recipe although `mmtune/train/` is a package.

Importing a submodule binds its name on the package, so the module itself must be what one can call.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


def make_callable(name: str, target: str) -> None:
    """Let the module `name` be called as the function "package.module:function" (imported at the call)."""

    class Callable(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            module, _, attribute = target.partition(":")
            return getattr(importlib.import_module(module), attribute)(*args, **kwargs)

    sys.modules[name].__class__ = Callable
