"""Read numeric columns that the objective uses (scores, weights), and check their values."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmtune.contracts import Batch
from mmtune.errors import DataError, RecipeError


def numeric_column(
    batch: Batch, name: str, key: str, rows: Tensor, low: float | None = None, high: float | None = None
) -> Tensor:
    """Return the values of column `name` at the batch's `rows`, as float32 [n].

    Raises RecipeError if the batch has no such column, and DataError for NaN or a value outside [low, high].

    key: the recipe key that names the column, for messages
    """
    if name not in batch.columns:
        known = f"; the numeric columns are: {', '.join(batch.columns)}" if batch.columns else ""
        raise RecipeError(f"{key}: the data have no numeric column {name!r}{known}")
    value = batch.columns[name][rows].float()
    check_values(value, lambda position: batch.ids[int(rows[position])], name, key, low, high)
    return value


def check_values(
    value: Tensor, row_id: Callable[[int], str], name: str, key: str, low: float | None = None, high: float | None = None
) -> None:
    """Raise DataError, naming key, column and row, for a value that is not finite or lies outside [low, high].

    row_id: returns the row id for a position in `value`
    """
    wrong = ~torch.isfinite(value)
    problem = "is not a number"
    if not bool(wrong.any()) and low is not None:
        wrong, problem = value < low, f"is below {low:g}"
    if not bool(wrong.any()) and high is not None:
        wrong, problem = value > high, f"is above {high:g}"
    if bool(wrong.any()):
        at = int(torch.nonzero(wrong)[0])
        raise DataError(f"{key}: column {name!r} of row {row_id(at)!r} is {float(value[at]):g}, which {problem}")
