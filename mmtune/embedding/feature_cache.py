"""Compute the features of frozen towers once and use them in all training epochs and in validation.

The features of a value are the output of its tower. A frozen tower always gives the same output for the same value, so the
output can be stored. A batch then contains {"features": [W, dim]} instead of the tower's input tensors, with "segments" if a
value has several windows. A `CachedTower` returns these features unchanged, so that heads, loss and training loop need no
change.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mmtune.backbones import Tower
from mmtune.contracts import Embeddings, Preprocess, Signal
from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_occurrences
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError
from mmtune.model.window_groups import encode_in_groups, preprocess_in_groups
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    import random

    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.model.dual_encoder import Model

FEATURES = "features"
BATCH_SIZE = 64
"""Values in one forward pass; the same as the default of `embed_rows`."""


_SHARED: "contextvars.ContextVar[dict[str, dict[int, dict[str, Tensor]]] | None]" = contextvars.ContextVar(
    "shared", default=None
)


@contextlib.contextmanager
def share_features() -> Iterator[None]:
    """Context manager in which outputs of frozen towers are computed once: {modality: {content label: features}}.

    The models inside must have the same towers and preprocessing, e.g. the initialisation of heads and the training after it, or
    runs of one recipe with several seeds. Inside another `share_features`, the outer one is used.
    """
    if _SHARED.get() is not None:
        yield
        return
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def shared_features(m: str) -> dict[int, dict[str, Tensor]] | None:
    """Return what caches share about a modality, to be read or filled; None outside `share_features`."""
    shared = _SHARED.get()
    return None if shared is None else shared.setdefault(m, {})


class CachedTower(Tower):
    """A frozen tower with stored features.

    `encode` returns the features of a batch that contains them, and runs the tower for any other batch.

    items: {content label of a value: {"features": [w, dim]}} on the CPU, where w is the number of windows of the value
    """

    def __init__(self, tower: Tower):
        super().__init__(tower.modality, tower.dim, tower.preprocess, self._features_or_forward, tower.modules)
        self.tower = tower
        shared = shared_features(tower.modality)
        self.is_shared = shared is not None
        self.items: dict[int, dict[str, Tensor]] = {} if shared is None else shared

    def _features_or_forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs[FEATURES] if FEATURES in inputs else self.tower.encode(inputs)

    def store(self, data: "Data | WeightedConcat", device: torch.device, quiet: bool = False) -> None:
        """Compute and store the features of all values of `data` that are not stored yet.

        Raises DataError if a value cannot be read.
        """
        m = self.modality
        rows = np.flatnonzero(data.present[m])
        first, _ = first_occurrences(data.labels[m][rows])
        new = [int(i) for i in rows[first] if int(data.labels[m][i]) not in self.items]
        for row, features in zip(new, tower_features(self.tower, self.preprocess, data, new, device, quiet), strict=True):
            self.items[int(data.labels[m][row])] = {FEATURES: features}


def tower_features(
    tower: Tower,
    preprocess: Preprocess,
    data: "Data | WeightedConcat",
    rows: Sequence[int],
    device: torch.device,
    quiet: bool = False,
) -> Iterator[Tensor]:
    """Yield the outputs [w, dim] of a tower, without a head, for the value of each row, on the CPU, in float32.

    As in embedding for a search, all w windows of a long value are used, not a random one. The tower must be in eval mode. Inside
    `share_features`, outputs that are shared are not computed again, and new ones are shared.

    preprocess: the tower's preprocessing, with or without a prompt

    Raises DataError if a value cannot be read.
    """
    shared = shared_features(tower.modality) if preprocess is tower.preprocess else None
    if shared is None:
        yield from _computed_features(tower, preprocess, data, rows, device, quiet)
        return
    labels = [int(label) for label in data.labels[tower.modality][np.asarray(rows, int)]]
    missing = {label: row for label, row in zip(labels, rows, strict=True) if label not in shared}
    computed = _computed_features(tower, preprocess, data, list(missing.values()), device, quiet)
    for label, features in zip(missing, computed, strict=True):
        shared[label] = {FEATURES: features}
    yield from (shared[label][FEATURES] for label in labels)


def _computed_features(
    tower: Tower,
    preprocess: Preprocess,
    data: "Data | WeightedConcat",
    rows: Sequence[int],
    device: torch.device,
    quiet: bool,
) -> Iterator[Tensor]:
    if not rows:
        return
    m = tower.modality
    with Progress(f"features {m}", len(rows), quiet=quiet) as progress:
        for start in range(0, len(rows), BATCH_SIZE):
            part = rows[start : start + BATCH_SIZE]
            yield from features_of_signals(tower, preprocess, [functools.partial(decode_row, data, i, m) for i in part], device)
            progress.advance(len(part))


def features_of_signals(
    tower: Tower, preprocess: Preprocess, signals: Sequence[Callable[[], Signal]], device: torch.device
) -> Iterator[Tensor]:
    """Yield the outputs [w, dim] of a tower for each signal of one batch, as `tower_features`. signals: functions that decode them"""
    for items in preprocess_in_groups(iter(signals), preprocess, len(signals)):
        inputs = preprocess.collate(items)
        segments = inputs.pop("segments", torch.arange(len(items)))
        with torch.no_grad():
            out = encode_in_groups(tower.encode, {k: v.to(device) for k, v in inputs.items()}, len(items))
        yield from out.float().cpu().split(torch.bincount(segments, minlength=len(items)).tolist())


class FeaturePreprocess:
    """The Preprocess for a loader whose items are stored features. It only collates them."""

    def __call__(self, signal: Signal, rng: "random.Random | None" = None) -> dict[str, Tensor]:
        raise DataError("a value without stored features: the dataset changed during training; start the run again")

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Concatenate the features [w_i, dim] of all values to [W, dim].

        If a value has several windows, "segments" [W] gives the item index of each window.
        """
        inputs = {FEATURES: torch.cat([i[FEATURES] for i in items])}
        if len(inputs[FEATURES]) > len(items):
            inputs["segments"] = torch.repeat_interleave(torch.tensor([len(i[FEATURES]) for i in items]))
        return inputs


class FeatureCache:
    """Stored features of some frozen towers of a model."""

    def __init__(self, model: "Model", names: Sequence[str]):
        """Replace the towers of the modalities `names` by cached ones; `close` restores the original towers."""
        self.model = model
        self.towers = {m: CachedTower(model.towers[m]) for m in names}
        model.replace_towers(self.towers)

    def close(self) -> None:
        """Restore the model's original towers and delete the stored features."""
        self.model.replace_towers({m: t.tower for m, t in self.towers.items()})
        for tower in self.towers.values():
            if not tower.is_shared:
                tower.items.clear()

    def store(self, data: "Data | WeightedConcat", quiet: bool = False) -> None:
        """Compute and store the features of all values of `data` that are not stored yet.

        Raises DataError if a value cannot be read.
        """
        training = self.model.training
        self.model.eval()
        try:
            for m, tower in self.towers.items():
                if m in data.modalities:
                    tower.store(data, self.model.device, quiet)
        finally:
            self.model.train(training)

    @property
    def items(self) -> Mapping[str, Mapping[int, dict[str, Tensor]]]:
        """The stored features, {modality: {content label: item}}, as `Loader(prepared=...)` takes them."""
        return {m: t.items for m, t in self.towers.items()}

    def embed(
        self, model: "Model", data: "Data", modalities: Sequence[str], processes: Processes = SINGLE_PROCESS
    ) -> dict[str, Embeddings]:
        """Embed all rows of a dataset as `embed_data` does, from stored features for the cached towers.

        It is used for validation between epochs.
        """
        others = [m for m in modalities if m not in self.towers]
        embedded = embed_data(model, data, others, processes=processes) if others else {}
        training = model.training
        model.eval()
        try:
            fingerprint = model.fingerprint
            for m in modalities:
                if m in self.towers:
                    embedded[m] = self._embed_stored(model, data, m, fingerprint)
        finally:
            model.train(training)
        return {m: embedded[m] for m in modalities}

    @torch.inference_mode()
    def _embed_stored(self, model: "Model", data: "Data", m: str, fingerprint: str) -> Embeddings:
        rows = np.flatnonzero(data.present[m])
        content, inverse = np.unique(data.labels[m][rows], return_inverse=True)
        parts = []
        for start in range(0, len(content), 64 * BATCH_SIZE):  # larger batches, because only the heads are computed
            items = [self.towers[m].items[int(c)] for c in content[start : start + 64 * BATCH_SIZE]]
            inputs = {k: v.to(model.device) for k, v in FeaturePreprocess().collate(items).items()}
            parts.append(model.encode_inputs(m, inputs).cpu().numpy())
        vectors = np.concatenate(parts)[inverse] if parts else np.zeros((0, model.dim), np.float32)
        labels = {k: v[rows] for k, v in data.labels.items()}
        return Embeddings(data.ids.take(rows), data.groups.take(rows), labels, vectors, fingerprint)
