"""Another way to the same numbers in a module of transformers, taken only where it gives them."""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def replace_method(module: Any, name: str, method: Callable[..., Any], answers: Callable[[], list[Tensor]]) -> None:
    """Put `method` in place of the module's method `name` if `answers()`, which calls it on noise, gives what it gave before;
    else (another version of the module may be built otherwise) leave the module as it is."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            wanted = answers()
            setattr(module, name, types.MethodType(method, module))
            same = all(torch.allclose(f, w, rtol=1e-4, atol=1e-5) for f, w in zip(answers(), wanted, strict=True))
    except (AttributeError, TypeError, RuntimeError, ValueError):  # built otherwise than the caller knows
        same = False
    finally:
        module.train(training)
    if not same:
        vars(module).pop(name, None)
