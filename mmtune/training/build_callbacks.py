"""Create the trackers and callbacks of a recipe."""

import inspect
from collections.abc import Sequence

from mmtune.errors import RecipeError
from mmtune.recipe.run_block import CALLBACKS, RunConfig
from mmtune.runtime.plugins import nearest, resolve
from mmtune.training.callbacks import Callback, Callbacks
from mmtune.training.trackers import Trackers


def build_callbacks(config: RunConfig, given: Sequence[Callback] = ()) -> Callbacks:
    """Create the recipe's trackers and callbacks, followed by the callbacks that the caller gave.

    Raises MissingExtra for a tracker whose library is not installed, and RecipeError for a callback that cannot be imported, is no
    `Callback`, or does not have an option.
    """
    made: list[Callback] = [Trackers(config)] if config.trackers else []
    for number, block in enumerate(config.callbacks):
        key = f"run.callbacks[{number}]"
        kind = resolve(CALLBACKS, block.name, "callback", key=key)
        if not isinstance(kind, type) or not issubclass(kind, Callback):
            raise RecipeError(f"{key}: {block.name} is no subclass of mmtune.training.Callback")
        known = list(inspect.signature(kind).parameters)
        for option in block.options:
            if option not in known:
                raise RecipeError(f"{key}.{option}: {block.name} has no such option{nearest(option, known)}")
        made.append(kind(**block.options))
    for callback in given:
        if not isinstance(callback, Callback):
            raise RecipeError(f"callbacks: {callback!r} is no instance of a subclass of mmtune.training.Callback")
    return Callbacks([*made, *given])
