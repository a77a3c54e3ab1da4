"""Where the batches of a run come from: rows chosen by number (`IndexedEpochs`), or rows streamed from shards (`StreamedEpochs`)."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

import numpy as np
from torch import Tensor

from mmtune import modalities
from mmtune.contracts import Batch, JsonObject
from mmtune.data.loader.loader import Loader
from mmtune.data.loader.stream_loader import StreamLoader, StreamState
from mmtune.model.artifact.label_sample import LabelSample
from mmtune.model.artifact.trained_rows import read_samples, sample_labels
from mmtune.recipe.train_block import TrainConfig
from mmtune.training.checkpoint import TrainerState
from mmtune.training.large_batch.accumulation import BatchOfStep, batches_of_steps
from mmtune.training.stream_limits import refuse_unknown_length

EpochBatches: TypeAlias = Callable[[int], Sequence[np.ndarray]]
"""Maps the number of an epoch to its batches, each an array of row numbers."""

HardNegatives: TypeAlias = Callable[[np.ndarray], Mapping[str, np.ndarray] | None]
"""Maps the rows of a batch to the mined rows that join it as candidates, or None.

The result is {direction: [2, n]}: the position of the query in the batch, and the number of the mined row.
"""


@dataclass
class RemainingBatches:
    """The batches of an epoch that are left, until the run ends.

    loaded: the batches
    parts: the part that each of them has in its optimizer step; there are at least as many as were taken from `loaded`
    is_whole_epoch: whether the epoch ends after the last of them; known when `loaded` is used up
    """

    loaded: Iterator[Batch]
    parts: deque[BatchOfStep] = field(default_factory=deque)
    is_whole_epoch: bool = False


class Epochs(Protocol):
    """The batches of all epochs of a run.

    steps_per_epoch, total_steps: number of steps of an epoch and of the whole run; for streamed data an estimate
    total_pairs: number of pairs of the whole run, up to the end of its last step
    """

    steps_per_epoch: int
    total_steps: int
    total_pairs: int

    def is_finished(self, state: TrainerState) -> bool:
        """Whether the run has taken all its steps."""
        ...

    def batches(self, state: TrainerState) -> RemainingBatches:
        """The remaining batches of the epoch that `state` is in."""
        ...

    def schedule_step(self, state: TrainerState) -> float:
        """How many of `total_steps` are done, for the learning rate schedule."""
        ...

    def stream_state(self, state: TrainerState) -> JsonObject | None:
        """What a checkpoint must contain to continue in the middle of an epoch, beside the number of the batch. Collective."""
        ...

    def seen_texts(self) -> dict[str, np.ndarray]:
        """Which texts were trained on, if that is not known from the data: entries of `trained_rows`, for the artifact."""
        ...

    def restore_texts(self, seen: Mapping[str, Tensor] | None) -> None:
        """Restore what `seen_texts` returned, from a checkpoint; None if it is not in there."""
        ...


class IndexedEpochs:
    """Batches of rows that are chosen by their numbers.

    epoch_batches: returns the batches of an epoch as row numbers
    hard_negatives: returns mined rows for a batch; None: no mining
    """

    def __init__(
        self, loader: Loader, epoch_batches: EpochBatches, config: TrainConfig, hard_negatives: HardNegatives | None = None
    ):
        self.loader, self.epoch_batches, self.hard_negatives = loader, epoch_batches, hard_negatives
        self.per_step = config.gradient_accumulation_steps
        first = epoch_batches(0)
        self.steps_per_epoch = -(-len(first) // self.per_step)
        rows = max(1, sum(map(len, first)))
        epochs = config.epochs if config.samples is None else config.n_samples / rows
        self.total_steps = max(1, round(epochs * self.steps_per_epoch))
        whole, steps = divmod(self.total_steps, max(1, self.steps_per_epoch))
        self.total_pairs = whole * rows + sum(map(len, first[: steps * self.per_step]))

    def is_finished(self, state: TrainerState) -> bool:
        """Whether the run has taken all its steps."""
        return state.step >= self.total_steps

    def batches(self, state: TrainerState) -> RemainingBatches:
        """The remaining batches of the epoch that `state` is in."""
        batches = self.epoch_batches(state.epoch)
        stop = state.batch + (self.total_steps - state.step) * self.per_step
        parts = batches_of_steps([len(rows) for rows in batches], self.per_step)[state.batch : stop]
        loaded = self.loader.epoch(state.epoch, batches[state.batch : stop], self.hard_negatives)
        return RemainingBatches(loaded, deque(parts), stop >= len(batches))

    def schedule_step(self, state: TrainerState) -> float:
        """The number of steps that were taken."""
        return state.step

    def stream_state(self, state: TrainerState) -> JsonObject | None:
        """None: the number of the batch is enough."""
        return None

    def seen_texts(self) -> dict[str, np.ndarray]:
        """{}: the labels of all rows are known."""
        return {}

    def restore_texts(self, seen: Mapping[str, Tensor] | None) -> None:
        """Do nothing."""


class StreamedEpochs:
    """Batches of rows that are streamed from shards. Length and schedule of the run are measured in pairs.

    Raises RecipeError if the length of the run is unknown.
    """

    def __init__(self, loader: StreamLoader, config: TrainConfig):
        self.loader, self.per_step = loader, config.gradient_accumulation_steps
        self.texts: dict[str, LabelSample] = {m: LabelSample() for m in loader.preprocess if modalities.get(m).language}
        self.rows_per_step = config.batch_size * self.per_step
        loader.keep_states(2 * self.per_step)  # the batches of the next step are loaded while this one runs
        refuse_unknown_length(loader.sets, config)
        rows, self.max_epochs = loader.sets.rows, math.inf
        if config.samples is not None or rows is None:
            self.samples = config.n_samples
        else:
            self.samples, self.max_epochs = round(config.epochs * rows), math.ceil(config.epochs)
        self.total_pairs = self.samples
        self.total_steps = max(1, math.ceil(self.samples / self.rows_per_step))
        self.steps_per_epoch = max(1, math.ceil(rows / self.rows_per_step)) if rows else self.total_steps

    def is_finished(self, state: TrainerState) -> bool:
        """Whether the run has seen all its pairs."""
        return state.pairs >= self.samples or state.epoch >= self.max_epochs

    def batches(self, state: TrainerState) -> RemainingBatches:
        """The remaining batches of the epoch that `state` is in."""
        remaining = RemainingBatches(iter(()))
        remaining.loaded = self._load(state, remaining)
        return remaining

    def _load(self, state: TrainerState, remaining: RemainingBatches) -> Iterator[Batch]:
        """Load the batches, all those of an optimizer step before the first of them is used, because its weight depends on them."""
        pairs, stream = state.pairs, cast("StreamState | None", state.stream)
        loaded = self.loader.epoch(state.epoch, state.batch, stream)
        while pairs < self.samples:
            step = [batch for _, batch in zip(range(self.per_step), loaded, strict=False)]
            remaining.parts.extend(batches_of_steps([len(b.ids) for b in step], self.per_step))
            pairs += sum(len(b.ids) for b in step)
            for m, batch in itertools.product(self.texts, step):
                self.texts[m].add(batch.labels[m].numpy())
            yield from step
            if len(step) < self.per_step:
                remaining.is_whole_epoch = True
                return
        loaded.close()

    def schedule_step(self, state: TrainerState) -> float:
        """The number of pairs seen, in steps."""
        return min(state.pairs / self.rows_per_step, self.total_steps)

    def stream_state(self, state: TrainerState) -> JsonObject | None:
        """The positions of all lanes."""
        return cast("JsonObject | None", self.loader.state(state.batch))

    def seen_texts(self) -> dict[str, np.ndarray]:
        """Samples of the labels of all distinct texts so far, by modality."""
        return sample_labels(self.texts)

    def restore_texts(self, seen: Mapping[str, Tensor] | None) -> None:
        """Go on with the samples of a checkpoint. Without them, in a checkpoint of an older version, the texts stay unknown."""
        self.texts = read_samples({k: v.numpy() for k, v in seen.items()}) if seen is not None else {}


def make_epochs(
    loader: Loader | StreamLoader,
    epoch_batches: EpochBatches | None,
    config: TrainConfig,
    hard_negatives: HardNegatives | None = None,
) -> Epochs:
    """The batches of a run with this loader."""
    if isinstance(loader, StreamLoader):
        return StreamedEpochs(loader, config)
    assert epoch_batches is not None, "a Loader needs the batches of each epoch"
    return IndexedEpochs(loader, epoch_batches, config, hard_negatives)
