"""Losses and miners of pytorch-metric-learning by name, `pml:ProxyAnchorLoss`, with their arguments checked before they are built.

Musgrave et al. 2020, arXiv 2008.09164. The library is imported only when a recipe names one of its classes.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from mmtune.errors import MissingExtra, RecipeError
from mmtune.runtime import plugins
from mmtune.runtime.plugins import nearest

PREFIX = "pml:"
PARTS = {
    "loss": ("losses", "BaseMetricLossFunction"),
    "miner": ("miners", "BaseMiner"),
    "distance": ("distances", "BaseDistance"),
    "reducer": ("reducers", "BaseReducer"),
    "embedding_regularizer": ("regularizers", "BaseRegularizer"),
    "weight_regularizer": ("regularizers", "BaseRegularizer"),
}
"""{kind of part: (module of the library, base class)}. All but the first two are arguments of losses and miners."""
COUNTED = ("num_classes", "embedding_size", "descriptors_dim")
"""Arguments that follow from the data and the model."""
HIDDEN = ("mat_based_loss", "weight_init_func", "collect_stats")
"""Arguments that a recipe cannot set."""
UNUSABLE = {
    "BaseMetricLossFunction": "is a base class",
    "GenericPairLoss": "is a base class",
    "ManifoldLoss": "takes no class labels",
    "VICRegLoss": "takes no class labels",
    "InstanceLoss": "takes no class labels",
    "CrossBatchMemory": "wraps another loss; the recipe has the block `memory` for contrastive losses",
    "MultipleLosses": "wraps other losses; write them as several terms of `objective`",
    "SelfSupervisedLoss": "wraps another loss and takes no class labels",
    "BaseLossWrapper": "wraps another loss",
    "BaseMiner": "is a base class",
    "EmbeddingsAlreadyPackagedAsTriplets": "needs batches of triplets",
}


def is_library_name(name: str) -> bool:
    """Whether `name` has the form `pml:Class`."""
    return name.startswith(PREFIX)


def library_class(kind: str, name: str, key: str) -> Any:
    """Return a class of pytorch-metric-learning. Raises RecipeError, which names `key`, for an unknown or unusable one.

    kind: a key of PARTS
    name: with or without the prefix `pml:`
    """
    module_name, base_name = PARTS[kind]
    name = name.removeprefix(PREFIX)
    try:
        module = importlib.import_module(f"pytorch_metric_learning.{module_name}")
    except ImportError:
        raise MissingExtra(f'{key}: {PREFIX}{name} needs pytorch-metric-learning: pip install "mmtune[pml]"') from None
    base_module = importlib.import_module(f"pytorch_metric_learning.{module_name}.{_BASE_FILES[base_name]}")
    base = getattr(base_module, base_name)
    if name in UNUSABLE and kind in ("loss", "miner"):
        raise RecipeError(f"{key}: {PREFIX}{name} {UNUSABLE[name]}")
    known = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and n not in UNUSABLE}
    if name not in known:
        near = nearest(f"{PREFIX}{name}", [f"{PREFIX}{n}" for n in sorted(known)])
        raise RecipeError(f"{key}: pytorch-metric-learning has no {kind} {name!r}{near}")
    return known[name]


_BASE_FILES = {
    "BaseMetricLossFunction": "base_metric_loss_function",
    "BaseMiner": "base_miner",
    "BaseDistance": "base_distance",
    "BaseReducer": "base_reducer",
    "BaseRegularizer": "base_regularizer",
}


def constructor_parameters(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """Parameters of a class's constructor, including those that it passes on to its base classes as keyword arguments."""
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if base is nn.Module or base is object:
            break
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        for p in parameters:
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY):
                found.setdefault(p.name, p)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found


def build(cls: type[nn.Module], options: Mapping[str, object], key: str, counted: Mapping[str, int] | None = None) -> nn.Module:
    """Create an instance of a loss or miner class. Raises RecipeError, which names the option, for arguments that do not fit.

    options: arguments from the recipe. Values of the keys in PARTS are names or {name: NAME, option: value}
    counted: the number of classes and the dimension of embeddings, for the arguments in COUNTED that the class requires
    """
    counted, parameters = counted or {}, constructor_parameters(cls)
    known = [n for n in parameters if n not in (*COUNTED, *HIDDEN)]
    arguments: dict[str, Any] = {}
    for option, value in options.items():
        at = f"{key}.{option}"
        if option in COUNTED:
            raise RecipeError(f"{at}: is counted from the training data and the model; leave it out")
        if option not in known:
            raise RecipeError(f"{at}: {cls.__name__} has no such argument{nearest(option, known)}")
        arguments[option] = part(option, value, at) if option in PARTS else _checked(value, parameters[option], at)
    for name, p in parameters.items():
        if name in COUNTED and p.default is p.empty:
            arguments[name] = counted["num_classes" if name == "num_classes" else "embedding_size"]
        elif p.default is p.empty and name not in arguments and name not in HIDDEN:
            raise RecipeError(f"{key}.{name}: is missing; {cls.__name__} needs it")
    try:
        return cls(**arguments)
    except Exception as e:  # the library checks values itself, with exceptions of several types
        raise RecipeError(f"{key}: {cls.__name__} refuses its arguments: {type(e).__name__}: {_one_line(e)}") from None


def part(kind: str, value: object, key: str) -> nn.Module:
    """Build a miner, distance, reducer or regularizer from its name, or from {name: NAME, option: value}."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise RecipeError(f"{key}: {value!r} is not a name ({PREFIX}Class) or a mapping {{name: {PREFIX}Class, option: value}}")
    name = str(value["name"])
    options = {str(k): v for k, v in value.items() if k != "name"}
    is_own = plugins.is_target(name) and not is_library_name(name)
    cls = plugins.import_target(name, kind, key=key) if is_own else library_class(kind, name, key)
    return build(cls, options, key)


def _checked(value: object, parameter: inspect.Parameter, key: str) -> object:
    """Return `value` if its type fits the parameter's default: a number for a number, true or false for a boolean."""
    default = parameter.default
    if default is None or default is parameter.empty or isinstance(default, str):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = isinstance(value, bool) if isinstance(default, bool) else is_number
    if isinstance(default, bool | int | float) and not fits:
        wanted = "true or false" if isinstance(default, bool) else "a number"
        raise RecipeError(f"{key}: {value!r} is not {wanted}; the default is {default}")
    return value


def _one_line(e: Exception) -> str:
    return " ".join(str(e).split()) or "no message"
