"""Callbacks: methods of your own that are called after a step, a validation or a mining round, and at the end of a run.

They observe. A callback that changes the model, or draws from the global random generators, gives up that a resumed run equals
an uninterrupted one.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.mining.mining_result import MiningResult
    from mmtune.model.dual_encoder import Model
    from mmtune.recipe.recipe import Recipe
    from mmtune.training.train_result import TrainResult
    from mmtune.training.training_inputs import TrainingInputs


@dataclass
class CallbackContext:
    """The state of the run that every call gets.

    recipe: the recipe of the run
    directory: the run directory
    inputs: data, validation data and the model that is trained
    step: optimizer steps taken
    epoch: number of the epoch, from 0
    total_steps: steps of the whole run
    """

    recipe: "Recipe"
    directory: Path
    inputs: "TrainingInputs"
    step: int = 0
    epoch: int = 0
    total_steps: int = 0

    @property
    def model(self) -> "Model":
        """The model that is trained. It has the validated weights (with EMA: the averages) in `on_validation`."""
        return self.inputs.model


class Callback:
    """Base class of callbacks. Override the methods that you need; they are called on rank 0 only.

    A resumed run starts at its last checkpoint, so steps after it are reported again.
    """

    def on_start(self, context: CallbackContext) -> None:
        """Called before the first step; `context.step` is not 0 if the run is resumed."""

    def on_step(self, context: CallbackContext, metrics: Mapping[str, float]) -> None:
        """Called after each optimizer step, with loss, loss terms, grad_norm, lr and speed."""

    def on_validation(self, context: CallbackContext, metrics: Mapping[str, float]) -> None:
        """Called after each validation, with its scores; "metric" selects the checkpoints."""

    def on_mining(self, context: CallbackContext, result: "MiningResult") -> None:
        """Called after each mining round, with its table and audit."""

    def on_end(self, context: CallbackContext, result: "TrainResult") -> None:
        """Called when the artifact is saved."""

    def close(self) -> None:
        """Called when the run ends in any way, also by an error."""


class Callbacks(Callback):
    """Several callbacks as one. Each call is passed to all of them, in their order."""

    def __init__(self, callbacks: Sequence[Callback] = ()) -> None:
        self.callbacks = list(callbacks)

    def on_start(self, context: CallbackContext) -> None:
        for callback in self.callbacks:
            callback.on_start(context)

    def on_step(self, context: CallbackContext, metrics: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_step(context, metrics)

    def on_validation(self, context: CallbackContext, metrics: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_validation(context, metrics)

    def on_mining(self, context: CallbackContext, result: "MiningResult") -> None:
        for callback in self.callbacks:
            callback.on_mining(context, result)

    def on_end(self, context: CallbackContext, result: "TrainResult") -> None:
        for callback in self.callbacks:
            callback.on_end(context, result)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # every callback is closed, even if another one raises
            for callback in self.callbacks:
                stack.callback(callback.close)

    @contextlib.contextmanager
    def closing(self) -> Iterator["Callbacks"]:
        """Context manager that calls `close` at the end."""
        try:
            yield self
        finally:
            self.close()
