"""Assign rows to batches. The result depends only on the data, the seed and the epoch, so a resumed run gets the same batches."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from pydantic import TypeAdapter

from mmtune.data.loader.epoch_rows import EpochRows, RowValues
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import RecipeError
from mmtune.recipe.batches_block import PLANS, AnyPlan, BatchesBlock
from mmtune.recipe.block import check
from mmtune.runtime import plugins

PlanFunction: TypeAlias = Callable[..., Sequence[np.ndarray]]
"""Maps `EpochRows` and keyword-only options to batches, each an array of row numbers."""

KEY = "data.batches"
_BLOCK: TypeAdapter[AnyPlan] = TypeAdapter(BatchesBlock)


def register_batch_plan(name: str, target: str | PlanFunction) -> None:
    """Make a batch plan available to recipes in this process under `name`. target: the function, or "package.module:function"."""
    plugins.register(PLANS, name, target, "batch plan")


class BatchPlan:
    """`plan(epoch)` returns the epoch's batches, each an array of row numbers.

    notes: one line for each way in which the first epoch does not use every row once; usually empty
    """

    def __init__(self, data: WeightedConcat, usable: np.ndarray, batch_size: int, seed: int, block: AnyPlan) -> None:
        self.data, self.usable, self.batch_size, self.seed = data, usable, batch_size, seed
        self.name, self.options = block.plan, block.options
        self.values = RowValues(data, KEY)
        self.function: PlanFunction = plugins.resolve(PLANS, block.plan, "batch plan", key=KEY)
        _check_options(self.name, self.function, self.options)

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rows, rng = self._epoch_rows(epoch)
        made = self.function(EpochRows(rows, self.batch_size, rng, self.data, self.values), **self.options)
        batches = [np.asarray(batch) for batch in made]
        if not batches or any(b.ndim != 1 or not len(b) or b.dtype.kind not in "iu" for b in batches):
            raise RecipeError(
                f"{KEY}: plan {self.name} returned no batches, or a batch that is not a non-empty array of row numbers"
            )
        every = np.concatenate(batches)
        if every.min() < 0 or every.max() >= len(self.data) or not self.usable[every].all():
            raise RecipeError(f"{KEY}: plan {self.name} returned a row number that is not among the epoch's rows")
        return batches

    def _epoch_rows(self, epoch: int) -> tuple[np.ndarray, np.random.Generator]:
        rng = np.random.default_rng([self.seed, epoch, 1])
        rows = self.data.epoch_rows(rng)
        return rows[self.usable[rows]], rng

    @property
    def notes(self) -> list[str]:
        """Say how many rows the first epoch leaves out or repeats."""
        wanted = np.bincount(self._epoch_rows(0)[0], minlength=len(self.data))
        used = np.bincount(np.concatenate(self(0)), minlength=len(self.data))
        fewer, more, lines = used < wanted, used > wanted, []
        if fewer.any():
            lines.append(f"{KEY}: {self.name} leaves out {fewer.sum():,} of {(wanted > 0).sum():,} rows in the first epoch")
        if more.any():
            lines.append(f"{KEY}: {self.name} repeats {more.sum():,} rows in the first epoch, up to {used.max()} times each")
        return lines


def plan_batches(
    data: WeightedConcat, usable: np.ndarray, batch_size: int, seed: int, how: AnyPlan | str = "random"
) -> BatchPlan:
    """Return the batch plan of a run: a function from an epoch number to the epoch's batches, each an array of row numbers.

    data: the training data
    usable: bool [N], rows that may be used
    batch_size: rows per batch
    seed: random seed
    how: the recipe block `data.batches`, or the name of a plan without options

    Raises RecipeError for an unknown plan or option.
    """
    block = check(_BLOCK, how, KEY) if isinstance(how, str) else how
    return BatchPlan(data, usable, batch_size, seed, block)


def _check_options(name: str, function: PlanFunction, options: Mapping[str, object]) -> None:
    """Raise RecipeError for an option that the plan's function does not have, or one that is missing."""
    own = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    for option in options:
        if option not in own:
            raise RecipeError(f"{KEY}.{option}: the batch plan {name} has no such option{plugins.nearest(option, own)}")
    missing = [p.name for p in own.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise RecipeError(f"{KEY}.{missing[0]}: is missing; the batch plan {name} needs it")
