"""The training loop. Every run uses it; objective, large batches, partial tuning and regularisation are components it calls."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

from mmtune.contracts import Batch
from mmtune.data.loader.loader import Loader
from mmtune.errors import TrainingError
from mmtune.recipe.train_block import TrainConfig
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes, local_device
from mmtune.runtime.files import write_json
from mmtune.runtime.malloc import KEEP_ALL, KEEP_SMALL, keep_freed_memory
from mmtune.runtime.prefetch import DeviceCopier, prefetch
from mmtune.runtime.progress import Progress
from mmtune.training.checkpoint import (
    Checkpoints,
    CheckpointTensors,
    TrainerState,
    random_state,
    restore_random_state,
)
from mmtune.training.compile_checkpoint import compiled_or_checkpointed
from mmtune.training.large_batch.fsdp import ShardedBlocks, map_moments
from mmtune.training.large_batch.shared_step import all_reduce_gradients, average_running_statistics, seed_process
from mmtune.training.metrics_log import MetricsLog, StepMetrics, ValidationMetrics
from mmtune.training.objective import Objective
from mmtune.training.optimizer import build_optimizer, lr_factor, parameter_groups
from mmtune.training.precision import autocast, resolve_precision
from mmtune.training.regularise.ema_l2sp import EmaL2SP
from mmtune.training.step import forward_backward
from mmtune.training.stop_signals import Stopped, StopSignals
from mmtune.training.tuning.layers import learning_state, load_learning_state

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.tuning.tune import TunedModel

LAST = "last"
"""Name of the checkpoint from which a run resumes."""

EpochBatches: TypeAlias = Callable[[int], Sequence[np.ndarray]]
"""Maps the number of an epoch to its batches, each an array of row numbers."""

HardNegatives: TypeAlias = Callable[[np.ndarray], Mapping[str, np.ndarray] | None]
"""Maps the rows of a batch to the mined rows that join it as candidates, or None.

The result is {direction: [2, n]}: the position of the query in the batch, and the number of the mined row.
"""

Validate: TypeAlias = "Callable[[Model], Mapping[str, float]]"
"""Maps the model to {metric name: value}. The value under "metric" selects the best checkpoints."""


@dataclass(frozen=True)
class StepOutcome:
    """Result of one optimizer step.

    loss: value of the objective
    terms: {name of the loss term: value}
    grad_norm: norm of the gradient before clipping
    should_stop: whether any process received a stop signal; then all processes stop after this step
    """

    loss: float
    terms: dict[str, float]
    grad_norm: float
    should_stop: bool


class Trainer:
    """Trains `model` with `objective` on the batches of `loader`.

    All randomness depends only on the seed and the trainer's state. So a run that was killed and resumed ends with the same
    weights as an uninterrupted one. If several processes train together, each creates its own Trainer; only rank 0 writes files.

    epoch_batches: returns the batches of an epoch as row numbers
    validate: scores the model after each epoch; None: no validation
    hard_negatives: returns mined rows for a batch; None: no mining
    tuned: the model after `tune`; None: all parameters are trained
    """

    def __init__(
        self,
        model: "Model",
        objective: Objective,
        loader: Loader,
        epoch_batches: EpochBatches,
        config: TrainConfig,
        directory: Path,
        *,
        validate: "Validate | None" = None,
        hard_negatives: HardNegatives | None = None,
        tuned: "TunedModel | None" = None,
        processes: Processes = SINGLE_PROCESS,
        quiet: bool = False,
    ):
        self.config, self.directory, self.processes, self.quiet = config, directory, processes, quiet
        self.loader, self.epoch_batches, self.hard_negatives, self.validate = loader, epoch_batches, hard_negatives, validate
        self.device, self.precision = local_device(), resolve_precision(config.precision)
        self.model, self.objective, self.tuned = model.to(self.device), objective.to(self.device), tuned
        processes.broadcast_parameters(self.model, self.objective)
        shares, rates = (tuned.lr_shares, tuned.rates) if tuned else (None, None)
        groups = parameter_groups(model, objective, config, shares, rates)
        self.sharded = ShardedBlocks(model, processes, config.shard)
        self.optimizer = build_optimizer(groups, config)
        self.learning = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.ema_l2sp = EmaL2SP(self.learning, config.ema, config.l2_start)
        self.checkpoints = Checkpoints(directory / "checkpoints", config.keep, write=processes.is_main_process)
        self.total_steps = max(1, round(config.epochs * len(epoch_batches(0))))
        self.state = TrainerState()
        self.stop = StopSignals(processes.is_single)

    # --- the run, epoch by epoch ---------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train until the last step, or until validation stops improving. Afterwards the model is unsharded.

        Raises Stopped after Ctrl-C or SIGTERM, when a checkpoint was saved, and TrainingError if a loss or gradient is not
        finite.
        """
        if not self.state.finished:
            self._fit()
        self.sharded.unshard()

    def _fit(self) -> None:
        if self.state.step == 0:
            torch.manual_seed(self.config.seed)
        size, done = self.config.batch_size, self.state.step * self.config.batch_size
        with (
            self._memory(),
            self._fast_attention(),
            compiled_or_checkpointed(self.model, self.config.compile, self.config.recompute),
            MetricsLog(self.directory, self.state.step, self.processes.is_main_process) as log,
            self.stop,
            Progress("train", self.total_steps * size, "pairs", self.quiet, done) as progress,
        ):
            while self.state.step < self.total_steps and not self._out_of_patience():
                self._train_epoch(log, progress)
                self.state.finish_epoch()
                if self.tuned is not None:
                    self.tuned.check_gradients()
                if self.validate is not None:
                    self._validate(self.validate, log, progress)
                self._save()
        self.state.finished = True
        self._save()

    def _train_epoch(self, log: MetricsLog, progress: Progress) -> None:
        """Run all steps of an epoch; after resuming in the middle of one, the remaining steps."""
        # Mining, which `epoch_batches` may start, embeds the data with the model and so needs all weights.
        with self.sharded.full_weights() if self.hard_negatives else contextlib.nullcontext():
            batches = self.epoch_batches(self.state.epoch)
        self.model.train()
        if self.tuned is not None:
            self.tuned.set_frozen_to_eval()
        left = batches[self.state.batch : self.state.batch + self.total_steps - self.state.step]
        start = time.perf_counter()
        for batch in self._on_device(self.loader.epoch(self.state.epoch, left, self.hard_negatives)):
            wait_seconds = time.perf_counter() - start
            outcome = self.step(batch)
            seconds, pairs = time.perf_counter() - start, int(batch.is_query.sum())
            self.state.record_step(pairs, seconds, wait_seconds)
            lr = self.optimizer.param_groups[0]["lr"]
            metrics = StepMetrics(outcome.loss, outcome.terms, outcome.grad_norm, lr, pairs, seconds, wait_seconds)
            log.log(self.state.step, self.state.epoch, metrics)
            note = f"epoch {self.state.epoch + 1} loss {outcome.loss:.3f} waiting {self.state.wait_share:.0%}"
            progress.advance(pairs, note)
            every = self.config.checkpoint_every
            if outcome.should_stop or (every and self.state.step % every == 0):
                self._save()
            if outcome.should_stop:
                raise Stopped(f"stopped at step {self.state.step} of {self.total_steps}; a checkpoint is saved")
            start = time.perf_counter()

    def _validate(self, validate: Validate, log: MetricsLog, progress: Progress) -> None:
        """Validate the model (with EMA weights if the recipe has them), and save a checkpoint if it is among the best."""
        with self.ema_l2sp.ema_weights(), self.sharded.full_weights():
            metrics = ValidationMetrics(validate(self.model))
            self.checkpoints.save_if_best(metrics.scores["metric"], self._tensors(), self.state)
        log.log(self.state.step, self.state.epoch - 1, metrics)
        progress.print(f"epoch {self.state.epoch}: {metrics}")

    def _out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.state.epochs_without_improvement >= patience

    # --- one step ------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepOutcome:
        """Take one optimizer step on one batch, whose tensors must be on the training device."""
        factor = lr_factor(self.state.step, self.total_steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        self.sharded.zero_grad()
        seed_process(self.processes, self.config.seed, self.state.step)
        loss, terms = forward_backward(
            self.model,
            batch,
            self.objective,
            micro_batch_size=self.config.micro_batch_size,
            autocast=functools.partial(autocast, self.device, self.precision),
            processes=self.processes,
            lockstep=self.config.shard,
        )
        self.sharded.collect_gradients()
        replicated = [p for p in self.learning if not self.sharded.is_shard(p)]
        should_stop = all_reduce_gradients(self.processes, replicated, self.stop.requested)
        average_running_statistics(self.processes, self.model)
        grad_norm = float(self.sharded.clip_grad_norm(self.learning, self.config.clip_norm or math.inf))
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise self._not_finite(batch, loss, grad_norm)
        if self.tuned is not None:
            self.tuned.record_gradients(self.processes)
        self.optimizer.step()
        self.ema_l2sp.update(self.config.lr * factor)
        self.model.clamp_logit_scales()
        return StepOutcome(loss, terms, grad_norm, should_stop)

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches on the training device.

        The next batch is copied while a step runs. With micro-batches it is not, because they are used to save memory.
        """
        if self.device.type == "cpu":
            return batches
        copy = DeviceCopier(self.device)
        if self.config.micro_batch_size is not None:
            return (batch.map_tensors(copy) for batch in batches)
        return prefetch(batches, lambda batch: batch.map_tensors(copy))

    def _not_finite(self, batch: Batch, loss: float, grad_norm: float) -> TrainingError:
        """Write the row ids of the batch to a file, and return the error for a loss or gradient that is not finite."""
        path = self.directory / f"not_finite_step_{self.state.step}.json"
        values = {"step": self.state.step, "epoch": self.state.epoch, "loss": str(loss), "grad_norm": str(grad_norm)}
        if self.processes.is_main_process:
            write_json(path, {**values, "ids": batch.ids})
        return TrainingError(
            f"step {self.state.step}: the loss is {loss} and the gradient norm is {grad_norm}; row ids of the batch: "
            f"{', '.join(batch.ids[:5])}{', ...' if len(batch.ids) > 5 else ''} (all in {path}): check these rows, "
            "lower train.lr, or set train.precision=fp32"
        )

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Restore the last checkpoint. Returns False if there is none."""
        if not self.processes.broadcast(self.checkpoints.exists(LAST)):
            return False
        tensors, self.state = self.checkpoints.load(LAST)
        with self.sharded.full_weights(write_back=True):
            load_learning_state(self.model, tensors["model"])
        self.ema_l2sp.load_state_dict(tensors["steady"], self.sharded.local_rows)
        self.objective.load_state_dict(tensors["objective"])
        self.optimizer.load_state_dict(map_moments(tensors["optimizer"], self.learning, self.sharded.local_rows))
        restore_random_state(tensors["random"])
        self.processes.barrier()  # rank 0 must not overwrite the checkpoint while another process still reads it
        return True

    def load_best(self) -> str:
        """Load the weights with the best validation metric, or the last weights if there was no validation.

        Returns the name of the checkpoint.
        """
        name = self.state.best[0][1] if self.state.best else LAST
        tensors, _ = self.checkpoints.load(name)
        load_learning_state(self.model, tensors["model"])
        if name == LAST:
            self.ema_l2sp.load_state_dict(tensors["steady"])  # the weights are unsharded now, as in the checkpoint
            self.ema_l2sp.copy_to_model()
        self.model.eval()
        return name

    def _save(self) -> None:
        self.checkpoints.save(LAST, self._tensors(), self.state)

    def _tensors(self) -> CheckpointTensors:
        """Tensors of a checkpoint. They are unsharded, so that a run with any number of processes can resume from them."""
        with self.sharded.full_weights():
            model, objective = learning_state(self.model), self.objective.state_dict()
        return {
            "model": model,
            "objective": objective,
            "steady": self.ema_l2sp.state_dict(self.sharded.full_tensor),
            "optimizer": map_moments(self.optimizer.state_dict(), self.learning, self.sharded.full_tensor),
            "random": random_state(),
        }

    # --- settings that apply only during training ----------------------------------------------------------------

    def _memory(self) -> contextlib.AbstractContextManager[None]:
        """Context manager that keeps freed memory in the process for the next step (CPU only).

        With sharded blocks only small allocations are kept, because sharding is used to reduce memory.
        """
        if self.device.type != "cpu":
            return contextlib.nullcontext()
        return keep_freed_memory(KEEP_SMALL if self.config.shard and not self.processes.is_single else KEEP_ALL)

    @contextlib.contextmanager
    def _fast_attention(self) -> Iterator[None]:
        """Context manager that selects, in each backbone, the attention implementation with the fastest backward pass.

        At the end it selects the implementation for inference again, so that embeddings do not change.
        """
        for backbone, _ in self.model.backbones:
            backbone.select_attention(self.device.type, self.precision == "bf16")
        try:
            yield
        finally:
            for backbone, _ in self.model.backbones:
                backbone.select_attention("", False)
