"""Checkpoints hold everything that a run needs to continue exactly. They are published atomically and loaded weights-only."""

import random
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import JsonObject
from mmtune.errors import ModelError, first_line
from mmtune.runtime.devices import has_mps
from mmtune.runtime.files import atomic_dir, read_json, write_json
from mmtune.runtime.format_number import check_format
from mmtune.training.regularise.ema_l2sp import EmaState

LAST = "last"
"""Name of the checkpoint from which a run resumes."""
BEFORE_DECAY = "before_decay"
"""Name of the checkpoint at the start of the decay of the schedule wsd, from which an extended run continues."""
STATE_FILE = "trainer_state.json"
FORMAT = 1
"""The format number of a checkpoint; one without it is of format 1."""
OLD_STATE_FILE = "place.json"
OLD_NAMES = {
    "waited": "wait_seconds",
    "stale": "validations_without_improvement",
    "epochs_without_improvement": "validations_without_improvement",
}
"""Names of the state file and its fields in checkpoints of older versions. They can still be read."""


@dataclass
class TrainerState:
    """How far a run has come.

    step: optimizer steps taken
    epoch, batch: epoch and number of the next batch to train on, from 0
    pairs: query rows seen so far (mined rows, which are only candidates, are not counted)
    seconds: time spent in training steps, including waiting for data
    wait_seconds: the part of `seconds` spent waiting for data
    stream: position in the shards of a streamed epoch (`StreamState`), None at its start
    best: (validation metric, checkpoint name) of the checkpoints that are kept, best first
    validations_without_improvement: number of validations since the best one
    validated_step: step of the last validation, or -1
    total_steps: steps of the whole run as it was planned; 0 in checkpoints of older versions
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    pairs: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    best: list[tuple[float, str]] = field(default_factory=list)
    stream: JsonObject | None = None
    validations_without_improvement: int = 0
    validated_step: int = -1
    total_steps: int = 0
    finished: bool = False

    def record_step(self, batches: int, pairs: int, seconds: float, wait_seconds: float) -> None:
        """Count one optimizer step.

        batches, pairs: its batches and their query rows
        seconds, wait_seconds: its duration, and the part of it spent waiting for data
        """
        self.step += 1
        self.batch += batches
        self.pairs += pairs
        self.seconds += seconds
        self.wait_seconds += wait_seconds

    def finish_epoch(self) -> None:
        """Move on to the first batch of the next epoch."""
        self.epoch += 1
        self.batch = 0
        self.stream = None

    def record_validation(self, metric: float, name: str, keep: int) -> "BestCheckpoints":
        """Add checkpoint `name` to the ranking by `metric`, keep the best `keep`, and count validations without improvement."""
        before = {n for _, n in self.best}
        self.best = sorted([*[b for b in self.best if b[1] != name], (metric, name)], key=lambda b: (-b[0], b[1]))[:keep]
        kept = {n for _, n in self.best}
        improved = self.best[0][1] == name
        self.validations_without_improvement = 0 if improved else self.validations_without_improvement + 1
        return BestCheckpoints(is_kept=name in kept, dropped=sorted(before - kept))

    @property
    def wait_share(self) -> float:
        """Share of the training time that was spent waiting for data."""
        return self.wait_seconds / max(self.seconds, 1e-9)

    @property
    def pairs_per_second(self) -> float:
        """Mean training speed over the run."""
        return self.pairs / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class BestCheckpoints:
    """The result of ranking a new checkpoint.

    is_kept: whether the new checkpoint is among the best
    dropped: names of checkpoints that no longer are, and can be deleted
    """

    is_kept: bool
    dropped: list[str]


class RandomState(TypedDict, total=False):
    """States of the random number generators, as plain tensors and numbers."""

    python: Tensor
    numpy: tuple[Tensor, int, int, float]
    torch: Tensor
    cuda: list[Tensor]
    mps: Tensor


class CheckpointTensors(TypedDict, total=False):
    """Contents of `state.pt`. Checkpoints of the best weights contain only `model` and `objective`.

    model: the trainable parameters and the buffers
    objective: state dict of the Objective
    optimizer: torch's state dict of the optimizer
    steady: state of the weight EMA
    random: states of the random number generators
    texts: which texts of streamed rows were trained on (`Epochs.seen_texts`)
    """

    model: dict[str, Any]
    objective: dict[str, Any]
    optimizer: dict[str, Any]
    steady: EmaState
    random: RandomState
    texts: dict[str, Tensor]


def random_state() -> RandomState:
    """Return the states of the random number generators of Python, numpy and torch."""
    _, internal, _ = random.getstate()
    _, keys, position, has_gauss, cached_gauss = np.random.get_state(legacy=True)
    state: RandomState = {
        "python": torch.tensor(internal, dtype=torch.int64),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached_gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    elif has_mps():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: RandomState) -> None:
    """Restore the states that `random_state` returned."""
    random.setstate((3, tuple(state["python"].tolist()), None))
    keys, position, has_gauss, cached_gauss = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and has_mps():
        torch.mps.set_rng_state(state["mps"])


class Checkpoints:
    """The directory RUN/checkpoints, which holds the checkpoint LAST, with wsd BEFORE_DECAY, and the `keep` best ones by the validation metric.

    write: False on all ranks but 0, which only read
    """

    def __init__(self, directory: Path, keep: int, write: bool = True):
        self.directory, self.keep, self.write = directory, keep, write

    def save(self, name: str, tensors: CheckpointTensors, state: TrainerState) -> None:
        """Publish one checkpoint atomically."""
        if not self.write:
            return
        with atomic_dir(self.directory / name) as tmp:
            with open(
                tmp / "state.pt", "wb"
            ) as f:  # a full disk is an OSError then; torch's own writer only says "unexpected pos"
                torch.save(tensors, f)
            write_json(tmp / STATE_FILE, {"format": FORMAT, **asdict(state)})

    def load(self, name: str) -> tuple[CheckpointTensors, TrainerState]:
        """Load one checkpoint. Raises ModelError for a damaged file. No pickled code is run (`weights_only=True`)."""
        directory = self.directory / name
        try:
            tensors = torch.load(directory / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, RuntimeError) as e:
            raise ModelError(f"{directory}: damaged checkpoint ({first_line(e)}); delete it to start the run again") from None
        return tensors, self.load_state(name)

    def load_state(self, name: str) -> TrainerState:
        """Load only the trainer's state of one checkpoint."""
        directory = self.directory / name
        document = read_json(directory / (STATE_FILE if (directory / STATE_FILE).is_file() else OLD_STATE_FILE))
        check_format(document.pop("format", None), FORMAT, directory, ModelError, missing=1)
        values = {OLD_NAMES.get(k, k): v for k, v in document.items()}
        values["best"] = [(float(m), str(n)) for m, n in values["best"]]
        return TrainerState(**values)

    def exists(self, name: str) -> bool:
        """Whether there is a checkpoint with this name."""
        return any((self.directory / name / file).is_file() for file in (STATE_FILE, OLD_STATE_FILE))

    def _kept_for_extension(self) -> set[str]:
        """Names of the best checkpoints at the start of the decay of wsd. A run that is extended ranks them again."""
        return {name for _, name in self.load_state(BEFORE_DECAY).best} if self.exists(BEFORE_DECAY) else set()

    def delete_unranked(self, state: TrainerState) -> None:
        """Delete checkpoints of the best weights that `state` does not know, because the run resumes from before them."""
        known = {name for _, name in state.best}
        for path in self.directory.glob("step-*") if self.write else ():
            if path.name not in known:
                shutil.rmtree(path, ignore_errors=True)

    def save_if_best(self, metric: float, tensors: CheckpointTensors, state: TrainerState) -> None:
        """Save the weights if they are among the `keep` best by `metric`, and delete the checkpoint that they displace.

        The ranking in `state` is updated.
        """
        name = f"step-{state.step:07d}"
        ranking = state.record_validation(metric, name, self.keep)
        if ranking.is_kept:
            self.save(name, {"model": tensors["model"], "objective": tensors["objective"]}, state)
        for old in set(ranking.dropped) - self._kept_for_extension() if self.write else ():
            shutil.rmtree(self.directory / old, ignore_errors=True)
