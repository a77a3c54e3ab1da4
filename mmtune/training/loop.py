"""The training loop. Every run uses it; objective, large batches, partial tuning and regularisation are components it calls."""

import contextlib
import functools
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from mmtune.contracts import Batch
from mmtune.data.loader.loader import Loader
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.errors import RecipeError
from mmtune.evaluation.validation import SELECTION
from mmtune.recipe.train_block import TrainConfig
from mmtune.runtime.devices import local_device
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.malloc import KEEP_ALL, KEEP_SMALL, keep_freed_memory
from mmtune.runtime.prefetch import DeviceCopier, prefetch
from mmtune.runtime.progress import Progress
from mmtune.training.callbacks import Callback, CallbackContext
from mmtune.training.checkpoint import (
    BEFORE_DECAY,
    LAST,
    Checkpoints,
    CheckpointTensors,
    TrainerState,
    random_state,
    restore_random_state,
)
from mmtune.training.compile_checkpoint import (
    begin_step,
    channels_last_convolutions,
    compiled_or_checkpointed,
    fast_attention,
)
from mmtune.training.epochs import EpochBatches, HardNegatives, make_epochs
from mmtune.training.extend_run import checkpoint_to_resume
from mmtune.training.large_batch.accumulation import BatchOfStep, StepSums
from mmtune.training.large_batch.fsdp import ShardedBlocks, map_moments
from mmtune.training.large_batch.shared_step import all_reduce_gradients, average_running_statistics, seed_process
from mmtune.training.load_meter import LoadMeter
from mmtune.training.metrics_log import MetricsLog, StepMetrics, ValidationMetrics
from mmtune.training.not_finite import not_finite_error
from mmtune.training.objective import Objective
from mmtune.training.optimizer import build_optimizer, decay_start, lr_factor, parameter_groups
from mmtune.training.precision import autocast, resolve_precision
from mmtune.training.regularise.ema_l2sp import EmaL2SP
from mmtune.training.regularise.embedding_preservation import EmbeddingPreservation
from mmtune.training.step import forward_backward
from mmtune.training.step_threads import StepThreads
from mmtune.training.stop_signals import Stopped, StopSignals
from mmtune.training.tuning.gradual_unfreezing import GradualUnfreezing
from mmtune.training.tuning.layers import learning_state, load_learning_state

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.tuning.tune import TunedModel

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

    epoch_batches: returns the batches of an epoch as row numbers; None for a `StreamLoader`, which makes the batches itself
    validate: scores the model; None: no validation
    hard_negatives: returns mined rows for a batch; None: no mining
    tuned: the model after `tune`; None: all parameters are trained
    preservation: the embedding-preservation loss of each step; None: none
    threads: sets the number of threads of the steps; None: see `StepThreads`
    callbacks, context: what is called on rank 0 after steps and validations, and the state of the run that it gets
    """

    def __init__(
        self,
        model: "Model",
        objective: Objective,
        loader: Loader | StreamLoader,
        epoch_batches: EpochBatches | None,
        config: TrainConfig,
        directory: Path,
        *,
        validate: "Validate | None" = None,
        hard_negatives: HardNegatives | None = None,
        tuned: "TunedModel | None" = None,
        preservation: EmbeddingPreservation | None = None,
        callbacks: Callback | None = None,
        context: CallbackContext | None = None,
        processes: Processes = SINGLE_PROCESS,
        threads: StepThreads | None = None,
        quiet: bool = False,
    ):
        self.config, self.directory, self.processes, self.quiet = config, directory, processes, quiet
        self.loader, self.hard_negatives, self.validate = loader, hard_negatives, validate
        self.epochs = make_epochs(loader, epoch_batches, config, hard_negatives)
        self.preservation, self.threads = preservation, threads or StepThreads(None, processes, quiet)
        self.device, self.precision = local_device(), resolve_precision(config.precision)
        self.model, self.objective, self.tuned = model.to(self.device), objective.to(self.device), tuned
        processes.broadcast_parameters(self.model, self.objective)
        shares, rates = (tuned.lr_shares, tuned.rates) if tuned else ({}, None)
        shares = {**shares, **objective.class_losses.lr_shares(config.lr)}
        groups = parameter_groups(model, objective, config, shares, rates)
        self.reduce_dtype = torch.bfloat16 if config.reduce_precision == "bf16" else torch.float32
        self.sharded = ShardedBlocks(model, processes, config.shard, self.reduce_dtype)
        self.optimizer = build_optimizer(groups, config)
        self.learning = [p for g in self.optimizer.param_groups for p in g["params"]]
        of_losses = {id(p) for p in objective.parameters()}  # random at the start, not in the artifact: no EMA, no L2-SP
        self.ema_l2sp = EmaL2SP([p for p in self.learning if id(p) not in of_losses], config.ema, config.l2_start)
        self.checkpoints = Checkpoints(directory / "checkpoints", config.keep, write=processes.is_main_process)
        self.steps_per_epoch, self.total_steps = self.epochs.steps_per_epoch, self.epochs.total_steps
        self.state = TrainerState(total_steps=self.total_steps)
        self.meter = LoadMeter(loader.sets.cache if isinstance(loader, StreamLoader) else None)
        self.part, self.sums = BatchOfStep(), StepSums()  # of the batch that `step` gets next
        self.unfreezing = tuned.unfreezing if tuned and tuned.unfreezing else GradualUnfreezing(model, {})
        if config.shard and self.unfreezing.start:
            raise RecipeError("train.shard: tune.MODALITY.unfreeze_every needs whole towers; leave one of the two out")
        self.callbacks, self.context = callbacks if callbacks and processes.is_main_process else None, context
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
        with (
            self._memory(),
            self.threads.running(self.device),
            fast_attention(self.model, self.precision == "bf16"),
            channels_last_convolutions(self.model, self.config.channels_last),
            compiled_or_checkpointed(self.model, self.config.compile, self.config.recompute),
            MetricsLog(
                self.directory, self.state.step, self.state.validated_step == self.state.step, self.processes.is_main_process
            ) as log,
            self.stop,
            contextlib.closing(self.loader),
            Progress("train", self.epochs.total_pairs, "pairs", self.quiet, self.state.pairs) as progress,
        ):
            if self.callbacks is not None:
                self.callbacks.on_start(self._context())
            if self.state.step == 0 and self.config.validate_at_start:
                self._validate(log, progress)
            while not self.epochs.is_finished(self.state) and not self._out_of_patience():
                self._train_epoch(log, progress)
                if self.tuned is not None:
                    self.tuned.check_gradients()
                if self.state.validated_step != self.state.step:
                    self._validate(log, progress)
                self._save()
        self.state.finished = True
        self._save()

    def _train_epoch(self, log: MetricsLog, progress: Progress) -> None:
        """Run all steps of an epoch; after resuming in the middle of one, the remaining steps."""
        # Mining, which `epoch_batches` may start, embeds the data with the model and so needs all weights.
        with self.sharded.full_weights() if self.hard_negatives else contextlib.nullcontext():
            batches = self.epochs.batches(self.state)
        self._set_train_mode()
        start, wait_seconds = time.perf_counter(), 0.0
        before_loading = start
        for batch in self._on_device(batches.loaded):
            self.part = batches.parts.popleft()
            self.meter.add(batch.times)
            wait_seconds += time.perf_counter() - before_loading
            outcome = self.step(batch)
            if outcome is not None:
                self._after_step(outcome, time.perf_counter() - start, wait_seconds, log, progress)
                if self._out_of_patience():
                    return
                start, wait_seconds = time.perf_counter(), 0.0
            before_loading = time.perf_counter()
        if batches.is_whole_epoch:
            self.state.finish_epoch()

    def _after_step(
        self, outcome: StepOutcome, seconds: float, wait_seconds: float, log: MetricsLog, progress: Progress
    ) -> None:
        """Record one optimizer step, and validate and save a checkpoint if the recipe says so at this step."""
        pairs = self.sums.pairs
        self.state.record_step(self.sums.batches, pairs, seconds, wait_seconds)
        step, lr = self.state.step, self.optimizer.param_groups[0]["lr"]
        speed = (pairs, seconds, wait_seconds, self.threads.logged)
        metrics = StepMetrics(outcome.loss, outcome.terms, outcome.grad_norm, lr, *speed)
        self.threads.after_step(pairs, seconds - wait_seconds)
        log.log(step, self.state.epoch, metrics)
        if self.callbacks is not None:
            self.callbacks.on_step(self._context(), metrics.to_dict())
        progress.advance(pairs, self.meter.note(self.state, outcome.loss))
        if self.config.validate_every and step % self.config.validate_every == 0:
            self._validate(log, progress)
            self._set_train_mode()
        if outcome.should_stop or (self.config.checkpoint_every and step % self.config.checkpoint_every == 0):
            self._save()
        if self.config.schedule == "wsd" and step == decay_start(self.total_steps, self.config):
            self._save(BEFORE_DECAY)
        if outcome.should_stop:
            raise Stopped(f"stopped at step {step} of {self.total_steps}; a checkpoint is saved")

    def _set_train_mode(self) -> None:
        self.model.train()
        if self.tuned is not None:
            self.tuned.set_frozen_to_eval()

    def _validate(self, log: MetricsLog, progress: Progress) -> None:
        """Validate the model (with EMA weights if the recipe has them), and save a checkpoint if it is among the best.

        The validation before the first step takes no part in the choice of the best checkpoint.
        """
        if self.validate is None:
            return
        state = self.state
        state.validated_step = state.step
        with self.ema_l2sp.ema_weights(), self.sharded.full_weights():
            metrics = ValidationMetrics(self.validate(self.model))
            if state.step > 0:
                score = metrics.scores.get(SELECTION, metrics.scores["metric"])
                self.checkpoints.save_if_best(score, self._tensors(), state)
            if self.callbacks is not None:
                self.callbacks.on_validation(self._context(), metrics.scores)
        epoch = state.epoch - (1 if state.batch == 0 and state.epoch else 0)
        log.log(state.step, epoch, metrics)
        where = f"epoch {state.epoch}" if state.batch == 0 else f"step {state.step}"
        progress.print(f"{where if state.step else 'before training'}: {metrics}")

    def _context(self) -> CallbackContext:
        """The state of the run for callbacks."""
        assert self.context is not None
        self.context.step, self.context.epoch, self.context.total_steps = self.state.step, self.state.epoch, self.total_steps
        return self.context

    def _out_of_patience(self) -> bool:
        return self.state.validations_without_improvement >= (self.config.patience or math.inf)

    # --- one step ------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> StepOutcome | None:
        """Take one optimizer step on one batch, whose tensors must be on the training device.

        With gradient accumulation, only the last batch of a step takes it; the others add their gradient, and the result is None.
        """
        factor = lr_factor(self.epochs.schedule_step(self.state), self.total_steps, self.config)
        if self.part.is_first:
            begin_step(self.config.compile, self.device)
            self.sums = StepSums()
            for group in self.optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            self.optimizer.zero_grad(set_to_none=True)
            self.sharded.zero_grad()
            seed_process(self.processes, self.config.seed, self.state.step)
        with self.unfreezing.freeze(self.state.step / self.steps_per_epoch):
            loss, terms = forward_backward(
                self.model,
                batch,
                self.objective,
                micro_batch_size=self.config.micro_batch_size,
                micro_batch_tokens=self.config.micro_batch_tokens,
                length_buckets=self.config.length_buckets,
                autocast=functools.partial(autocast, self.device, self.precision),
                processes=self.processes,
                lockstep=self.config.shard,
                weight=self.part.weight,
            )
        self.sums.add(batch, self.part.weight, loss, terms)
        return self._optimizer_step(factor) if self.part.is_last else None

    def _optimizer_step(self, factor: float) -> StepOutcome:
        """Take the optimizer step on the gradients of all batches of the step. factor: factor on the peak learning rate."""
        preserved = {}
        if self.preservation is not None:
            cast = functools.partial(autocast, self.device, self.precision)
            preserved = {"preservation": self.preservation.add_gradient(self.model, self.state.step, cast)}
        self.sharded.collect_gradients()
        replicated = [p for p in self.learning if not self.sharded.is_shard(p)]
        should_stop = all_reduce_gradients(self.processes, replicated, self.stop.requested, self.reduce_dtype)
        average_running_statistics(self.processes, self.model)
        grad_norm = float(self.sharded.clip_grad_norm(self.learning, self.config.clip_norm or math.inf))
        loss, terms = self.sums.loss, {**self.sums.terms, **preserved}
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise not_finite_error(self.directory, self.state, self.sums.ids, loss, grad_norm, self.processes)
        if self.tuned is not None:
            self.tuned.record_gradients(self.processes)
        self.optimizer.step()
        self.ema_l2sp.update(self.config.lr * factor)
        self.model.clamp_logit_scales()
        return StepOutcome(loss, terms, grad_norm, should_stop)

    def _on_device(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield the batches on the training device.

        The next batch is copied while a step runs. With micro-batches, which are used to save memory, the inputs stay where they are:
        each micro-batch is copied when it is encoded.
        """
        if self.device.type == "cpu":
            return batches
        copy = DeviceCopier(self.device)
        if self.config.caches_gradients:
            return (batch.map_tensors(copy, inputs=False) for batch in batches)
        return prefetch(batches, lambda batch: batch.map_tensors(copy))

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def resume(self) -> bool:
        """Restore the last checkpoint. Returns False if there is none."""
        if not self.processes.broadcast(self.checkpoints.exists(LAST)):
            return False
        tensors, self.state, notes = checkpoint_to_resume(self.checkpoints, self.total_steps, self.config)
        if not self.quiet:
            print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        with self.sharded.full_weights(write_back=True):
            load_learning_state(self.model, tensors["model"])
        self.ema_l2sp.load_state_dict(tensors["steady"], self.sharded.local_rows)
        self.objective.load_state_dict(tensors["objective"])
        self.objective.to(self.device)  # what is no parameter, e.g. the queue of the memory, was loaded to the CPU
        self.optimizer.load_state_dict(map_moments(tensors["optimizer"], self.learning, self.sharded.local_rows))
        restore_random_state(tensors["random"])
        self.epochs.restore_texts(tensors.get("texts"))
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

    def _save(self, name: str = LAST) -> None:
        self.state.stream = self.epochs.stream_state(self.state)
        self.checkpoints.save(name, self._tensors(), self.state)

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
            "texts": {k: torch.from_numpy(v) for k, v in self.epochs.seen_texts().items()},
        }

    # --- settings that apply only during training ----------------------------------------------------------------

    def _memory(self) -> contextlib.AbstractContextManager[None]:
        """Keep freed memory in the process for the next step (CPU only); with sharded blocks, which save memory, only small allocations."""
        if self.device.type != "cpu":
            return contextlib.nullcontext()
        return keep_freed_memory(KEEP_SMALL if self.config.shard and not self.processes.is_single else KEEP_ALL)
