"""The error for a step whose loss or gradient is not finite."""

from collections.abc import Sequence
from pathlib import Path

from mmtune.errors import TrainingError
from mmtune.runtime.distributed import Processes
from mmtune.runtime.files import write_json
from mmtune.training.checkpoint import TrainerState


def not_finite_error(
    directory: Path, state: TrainerState, ids: Sequence[str], loss: float, grad_norm: float, processes: Processes
) -> TrainingError:
    """Write the row ids of the step to a file in `directory`, and return the error."""
    path = directory / f"not_finite_step_{state.step}.json"
    values = {"step": state.step, "epoch": state.epoch, "loss": str(loss), "grad_norm": str(grad_norm)}
    if processes.is_main_process:
        write_json(path, {**values, "ids": ids})
    return TrainingError(
        f"step {state.step}: the loss is {loss} and the gradient norm is {grad_norm}; row ids of the batch: "
        f"{', '.join(ids[:5])}{', ...' if len(ids) > 5 else ''} (all in {path}): check these rows, "
        "lower train.lr, or set train.precision=fp32"
    )
