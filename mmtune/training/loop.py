"""The ONE training loop. Objectives, large batches and surgery on parameters plug into it; nothing copies it."""

import contextlib
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmtune.contracts import Batch
from mmtune.data.loader.loader import Loader
from mmtune.errors import TrainingError
from mmtune.recipe.recipe import TrainConfig
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes, local_device
from mmtune.runtime.files import write_json
from mmtune.runtime.malloc import KEEP_ALL, KEEP_SMALL, keep_freed_memory
from mmtune.runtime.prefetch import DeviceCopier, prefetch
from mmtune.runtime.progress import Progress
from mmtune.training.checkpoint import Checkpoints, Place, random_state, restore_random_state
from mmtune.training.compile_checkpoint import blockwise
from mmtune.training.large_batch.fsdp import Sharded, each_moment
from mmtune.training.large_batch.shared_step import all_reduce_gradients, average_running_statistics, seed_process
from mmtune.training.metrics_log import Log
from mmtune.training.objective import Objective
from mmtune.training.optimizer import build_optimizer, lr_factor, parameter_groups
from mmtune.training.precision import autocast, resolve_precision
from mmtune.training.regularise.ema_l2sp import Steady
from mmtune.training.step import forward_backward
from mmtune.training.tuning.layers import learning_state, load_learning_state

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.tuning.tune import Tuned

LAST = "last"
ONE_CTRL_C = 5.0  # seconds


class Stopped(Exception):
    """Ctrl-C or SIGTERM: the state is saved."""


class Trainer:
    """Fits `model` by `objective` on `stream`.

    plan(epoch) gives the epoch's batches (arrays of row numbers); validate(model) gives {metric name: value} with the chosen
    metric under "metric"; extra(rows) gives mined rows that join a batch as candidates. Everything random is a function of
    the seed and the place, so that a run that was killed and resumed ends where the uninterrupted one does. Of several
    processes that train together each makes its own Trainer; the first writes.
    """

    def __init__(
        self,
        model: "Model",
        objective: Objective,
        stream: Loader,
        plan: Callable[[int], Sequence[np.ndarray]],
        config: TrainConfig,
        directory: Path,
        *,
        validate: "Callable[[Model], dict[str, float]] | None" = None,
        extra: Callable[[np.ndarray], Mapping[str, np.ndarray] | None] | None = None,
        tuned: "Tuned | None" = None,
        processes: Processes = SINGLE_PROCESS,
        quiet: bool = False,
    ):
        self.precision = resolve_precision(config.precision)
        self.device = local_device()
        self.move = DeviceCopier(self.device)
        self.model, self.objective = model.to(self.device), objective.to(self.device)
        self.stream, self.plan, self.config, self.directory = stream, plan, config, directory
        self.validate, self.extra, self.tuned, self.quiet = validate, extra, tuned, quiet
        self.processes = processes
        processes.broadcast_parameters(self.model, self.objective)
        self.checkpoints = Checkpoints(directory / "checkpoints", config.keep, write=processes.is_main_process)
        self.steps_per_epoch = len(plan(0))
        groups = parameter_groups(model, objective, config, tuned.rates if tuned else None)
        self.sharded = Sharded(model, processes, config.shard)
        self.optimizer = build_optimizer(groups, config)
        self.learning = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.steady = Steady(self.learning, config.ema, config.l2_start)
        self.place = Place()
        self.total = max(1, round(config.epochs * self.steps_per_epoch))
        self.stop, self.stopping = threading.Event(), False

    # --- state ---------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Any]:
        """All that a checkpoint holds beside the place: whole, so that any number of processes can go on from it."""
        with self.sharded.whole():
            state = {"model": learning_state(self.model), "objective": self.objective.state_dict()}
        steady = self.steady.state(self.sharded.joined)
        optimizer = each_moment(self.optimizer.state_dict(), self.learning, self.sharded.joined)
        return state | {"steady": steady, "optimizer": optimizer, "random": random_state()}

    def resume(self) -> bool:
        """Go back to the last checkpoint, if there is one."""
        if not self.processes.broadcast(self.checkpoints.has(LAST)):
            return False
        tensors, self.place = self.checkpoints.load(LAST)
        with self.sharded.whole(change=True):
            load_learning_state(self.model, tensors["model"])
        self.steady.load(tensors["steady"], self.sharded.part)
        self.objective.load_state_dict(tensors["objective"])
        self.optimizer.load_state_dict(each_moment(tensors["optimizer"], self.learning, self.sharded.part))
        restore_random_state(tensors["random"])
        self.processes.barrier()  # nobody writes while another still reads
        return True

    def load_best(self) -> str:
        """Put the best weights (by the validation metric; else the last) into the model; returns the checkpoint's name."""
        name = self.place.best[0][1] if self.place.best else LAST
        tensors, _ = self.checkpoints.load(name)
        load_learning_state(self.model, tensors["model"])
        if name == LAST:
            self.steady.load(tensors["steady"])  # of whole weights now
            self.steady.use_mean()
        self.model.eval()
        return name

    # --- the loop ------------------------------------------------------------------------------------------------

    def fit(self) -> None:
        """Train to the end of the recipe, or until nothing improves; the model is a plain one afterwards. Raises Stopped
        (Ctrl-C; saved) and TrainingError (NaN)."""
        if not self.place.finished:
            self._fit()
        self.sharded.undo()

    def _fit(self) -> None:
        if self.place.step == 0:
            torch.manual_seed(self.config.seed)
        blocks = blockwise(self.model, self.config.compile, self.config.recompute)
        kept = KEEP_SMALL if self.config.shard and not self.processes.is_single else KEEP_ALL
        heap = keep_freed_memory(kept) if self.device.type == "cpu" else contextlib.nullcontext()
        with (
            heap,
            self._attention(),
            blocks,
            Log(self.directory, self.place.step, self.processes.is_main_process) as log,
            self._signals(),
        ):
            done = self.place.step * self.config.batch_size
            with Progress("train", self.total * self.config.batch_size, "pairs", self.quiet, done) as progress:
                while self.place.step < self.total and not self._exhausted():
                    self._epoch(log, progress)
        self.place.finished = True
        self.checkpoints.save(LAST, self.tensors(), self.place)

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches on the device: the next one is copied while a step runs; not where micro-batches are to save memory."""
        if self.device.type == "cpu":
            return batches
        if self.config.micro_batch_size is not None:
            return (batch.map_tensors(self.move) for batch in batches)
        return prefetch(batches, lambda batch: batch.map_tensors(self.move))

    def _exhausted(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.place.stale >= patience

    def _epoch(self, log: Log, progress: Progress) -> None:
        with self.sharded.whole() if self.extra else contextlib.nullcontext():  # mining reads the model
            batches = self.plan(self.place.epoch)
        self.model.train()
        if self.tuned is not None:
            self.tuned.rest()
        left = batches[self.place.batch : self.place.batch + self.total - self.place.step]
        waiting = time.perf_counter()
        for batch in self._ahead(self.stream.epoch(self.place.epoch, left, self.extra)):
            begin = time.perf_counter()
            wait = begin - waiting
            loss, logs = self.step(batch)
            seconds = time.perf_counter() - waiting
            self.place.step += 1
            self.place.batch += 1
            rows = int(batch.is_query.sum())
            self.place.pairs += rows
            self.place.seconds += seconds
            self.place.waited += wait
            row = {
                "loss": loss,
                **logs,
                "lr": self.optimizer.param_groups[0]["lr"],
                "pairs_per_second": rows / seconds,
                "wait": wait / seconds,
            }
            log.write(self.place.step, self.place.epoch, row)
            progress.advance(rows, f"epoch {self.place.epoch + 1} loss {loss:.3f} waiting {self.place.wait:.0%}")
            every = self.config.checkpoint_every
            if self.stopping or (every and self.place.step % every == 0):
                self.checkpoints.save(LAST, self.tensors(), self.place)
            if self.stopping:
                raise Stopped(f"stopped at step {self.place.step} of {self.total}; saved")
            waiting = time.perf_counter()
        self.place.epoch += 1
        self.place.batch = 0
        self._finish_epoch(log, progress)

    def _finish_epoch(self, log: Log, progress: Progress) -> None:
        if self.tuned is not None:
            self.tuned.check()
        if self.validate is not None:
            with self.steady.averaged(), self.sharded.whole():
                values = self.validate(self.model)
                better = self.checkpoints.offer(values["metric"], self.tensors(), self.place)
            log.write(self.place.step, self.place.epoch - 1, {f"val {k}": v for k, v in values.items()})
            shown = "  ".join(f"{k} {v:.4f}" for k, v in values.items() if k != "metric")
            progress.print(f"epoch {self.place.epoch}: {shown}")
            self.place.stale = 0 if better else self.place.stale + 1
        self.checkpoints.save(LAST, self.tensors(), self.place)

    def step(self, batch: Batch) -> tuple[float, dict[str, float]]:
        """One optimizer step on one batch that lies on the device; returns (loss, logs)."""
        factor = lr_factor(self.place.step, self.total, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        self.sharded.clear_gradients()
        seed_process(self.processes, self.config.seed, self.place.step)
        loss, logs = forward_backward(
            self.model,
            batch,
            self.objective,
            micro_batch_size=self.config.micro_batch_size,
            autocast=functools.partial(autocast, self.device, self.precision),
            processes=self.processes,
            lockstep=self.config.shard,
        )
        self.sharded.take_gradients()
        rest = [p for p in self.learning if not self.sharded.holds(p)]
        self.stopping = all_reduce_gradients(self.processes, rest, self.stop.is_set())
        average_running_statistics(self.processes, self.model)
        norm = self.sharded.clip(self.learning, self.config.clip_norm or math.inf)
        if not math.isfinite(loss) or not math.isfinite(float(norm)):
            self._not_finite(batch, loss, float(norm))
        if self.tuned is not None:
            self.tuned.after_backward(self.processes)
        self.optimizer.step()
        self.steady.after_step(self.config.lr * factor)
        self.model.clamp_logit_scales()
        return loss, logs | {"grad_norm": float(norm)}

    def _not_finite(self, batch: Batch, loss: float, norm: float) -> None:
        path = self.directory / f"not_finite_step_{self.place.step}.json"
        found = {
            "step": self.place.step,
            "epoch": self.place.epoch,
            "loss": str(loss),
            "grad_norm": str(norm),
            "ids": batch.ids,
        }
        if self.processes.is_main_process:
            write_json(path, found)
        raise TrainingError(
            f"step {self.place.step}: the loss is {loss} and the gradient's norm {norm}; row ids "
            f"{', '.join(batch.ids[:5])}{', ...' if len(batch.ids) > 5 else ''} (all in {path}): look at these rows, "
            "lower train.lr, or set train.precision=fp32"
        )

    @contextlib.contextmanager
    def _attention(self) -> Iterator[None]:
        """Each part's attention that trains fast here; the usual one again afterwards, so that vectors stay what they are."""
        for part, _ in self.model.backbones:
            part.select_attention(self.device.type, self.precision == "bf16")
        try:
            yield
        finally:
            for part, _ in self.model.backbones:
                part.select_attention("", False)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM save after the running step; a second Ctrl-C stops at once. (Of several processes each gets the
        terminal's Ctrl-C and, right after it, the launcher's: these are one.)"""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        asked = -ONE_CTRL_C

        def ask(number: int, frame: Any) -> None:
            nonlocal asked
            if self.stop.is_set() and (self.processes.is_single or time.monotonic() - asked > ONE_CTRL_C):
                raise KeyboardInterrupt
            asked = time.monotonic()
            self.stop.set()

        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
