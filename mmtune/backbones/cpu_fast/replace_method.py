"""Replace a method of a module, but only if the new method gives the same results as the original one."""

import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def replace_method(module: nn.Module, name: str, method: Callable[..., object], results: Callable[[], list[Tensor]]) -> bool:
    """Replace a method of this module (not of its class) if the results stay the same; else leave the module unchanged.

    The results can differ, for example, in another version of transformers, whose module works differently.

    module: the module, changed in place
    name: name of the method
    method: its replacement; gets the module as its first argument
    results: calls the method on random inputs; is called before and after the replacement

    Returns whether the method was replaced.
    """
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            expected = results()
            setattr(module, name, types.MethodType(method, module))
            same = all(torch.allclose(r, e, rtol=1e-4, atol=1e-5) for r, e in zip(results(), expected, strict=True))
    except (AttributeError, TypeError, RuntimeError, ValueError, IndexError):  # the module lacks what `method` needs
        same = False
    finally:
        module.train(training)
    if not same:
        vars(module).pop(name, None)
    return same


def replace_by_inputs(
    module: nn.Module, name: str, method: Callable[..., object], inputs: Sequence[tuple[object, ...]]
) -> bool:
    """Call `replace_method` with the method's results on given inputs; of a returned tuple, only the first entry is compared.

    inputs: one tuple of arguments for each call
    """

    def results() -> list[Tensor]:
        returned = [getattr(module, name)(*x) for x in inputs]
        return [r[0] if isinstance(r, tuple) else r for r in returned]

    return replace_method(module, name, method, results)


def random_tensor(*shape: int) -> Tensor:
    """Return normally distributed values, the same at every call, without using torch's global generator."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
