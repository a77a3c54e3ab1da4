"""Extending a run: the checkpoint from which a run with more epochs than before continues, and whether that equals a run that had
been planned with them."""

from mmtune.recipe.train_block import TrainConfig
from mmtune.training.checkpoint import BEFORE_DECAY, LAST, Checkpoints, CheckpointTensors, TrainerState
from mmtune.training.optimizer import decay_start, lr_factor


def checkpoint_to_resume(
    checkpoints: Checkpoints, total_steps: int, config: TrainConfig
) -> tuple[CheckpointTensors, TrainerState, list[str]]:
    """Return the checkpoint from which a run of `total_steps` continues, its state, and notes for the user.

    It is the last one. A run with the schedule wsd that is extended continues before its decay, so that the decay is not trained
    twice. The notes say where the learning rates of the steps taken differ from those of a run planned with `total_steps`.
    """
    tensors, state = checkpoints.load(LAST)
    planned = state.total_steps
    if planned in (0, total_steps):
        state.total_steps = total_steps
        return tensors, state, []
    if config.schedule == "wsd" and checkpoints.exists(BEFORE_DECAY):
        earlier, state_then = checkpoints.load(BEFORE_DECAY)
        if state_then.step <= min(state.step, decay_start(total_steps, config)):
            tensors, state = earlier, state_then
            checkpoints.delete_unranked(state)
    state.total_steps, state.finished = total_steps, False
    return tensors, state, _notes(state.step, planned, total_steps, config)


def _notes(step: int, planned: int, total_steps: int, config: TrainConfig) -> list[str]:
    """One line: from where an extended run continues, and whether it equals a run planned with `total_steps`."""
    differing = [s for s in range(step) if lr_factor(s, planned, config) != lr_factor(s, total_steps, config)]
    line = f"extended from {planned} to {total_steps} steps; continues at step {step}"
    if not differing:
        return [f"{line}, as a run planned with {total_steps} steps would"]
    return [
        f"{line}. {len(differing)} of the steps before had other learning rates than in a run planned with {total_steps} steps "
        f"(train.schedule: {config.schedule}, train.warmup: {config.warmup:g}), so the result differs from it; constant and wsd with "
        "a warm-up in steps extend exactly"
    ]
