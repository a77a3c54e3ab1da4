"""Signals -> vectors through one tower: the inner loop of every embedding, for users' own values and for packed rows alike."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.errors import ModelError, Rejected
from mmtune.model.prompts import with_prompt
from mmtune.runtime.prefetch import DeviceCopier, prefetch

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def encode_batches(
    model: "Model",
    modality: str,
    signals: Iterable[Callable[[], Signal]],
    batch_size: int,
    on_batch: Callable[[int], None],
    role: str | None = None,
) -> Iterator[np.ndarray]:
    """Unit vectors [n, D] float32 of `batch_size` signals at a time, in order.

    signals: functions that return a signal each; they are called in a thread, so that the next batch is decoded, preprocessed and
    copied to the device while the model encodes this one. on_batch(n) is called after each batch of n. role: which of the
    model's prompts (see `mmtune.model.prompts`) goes around each text.
    """
    preprocess = with_prompt(model.towers[modality].preprocess, model.prompts, modality, role)
    to_device = DeviceCopier(model.device)

    def prepare(batch: list[Callable[[], Signal]]) -> dict[str, torch.Tensor]:
        return {k: to_device(v) for k, v in preprocess.collate([preprocess(signal()) for signal in batch]).items()}

    def forward(inputs: dict[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            z = model.encode_inputs(modality, inputs)
        return z.cpu().numpy()

    was_training = model.training
    model.eval()
    try:
        batches = _batches(signals, batch_size)
        first, second = next(batches, None), next(batches, None)
        if first and second is None:  # one batch, e.g. a query: nothing to overlap with, so no thread
            yield forward(prepare(first))
            on_batch(len(first))
            return
        rest = itertools.chain(filter(None, (first, second)), batches)
        for size, inputs in prefetch(rest, lambda batch: (len(batch), prepare(batch))):
            yield forward(inputs)
            on_batch(size)
    finally:
        model.train(was_training)


def _batches(signals: Iterable[Callable[[], Signal]], size: int) -> Iterator[list[Callable[[], Signal]]]:
    iterator = iter(signals)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def decoded(signals: Iterable[Signal]) -> list[Callable[[], Signal]]:
    """Signals that are decoded already, in the form that `encode_batches` takes."""
    return [lambda s=s: s for s in signals]  # type: ignore[misc]


def encode_values(
    model: "Model", modality: str, values: Sequence[object], batch_size: int = 64, role: str | None = None
) -> np.ndarray:
    """A user's values (paths, arrays, strings, ...) -> unit vectors [N, D] float32. ModelError for a modality that the model
    lacks, and for a value that cannot be read, naming its position."""
    if modality not in model.towers:
        raise ModelError(f"this model has no {modality} tower; it has {', '.join(model.towers)}")
    kind = modalities.get(modality)

    def signal(i: int) -> Callable[[], Signal]:
        def read() -> Signal:
            try:
                return kind.coerce(values[i])
            except Rejected as e:
                raise ModelError(f"encode: {modality}[{i}]: {e}") from None

        return read

    parts = list(encode_batches(model, modality, map(signal, range(len(values))), batch_size, lambda n: None, role))
    return np.concatenate(parts) if parts else np.zeros((0, model.dim), np.float32)


def infer_modality(model: "Model", values: Sequence[object]) -> str:
    """The one modality of the model that accepts all `values` by their types (`Modality.accepts`).

    ModelError where none does, or more than one: a string "a.png" may be a path or a caption.
    """
    names = [m for m in model.towers if all(modalities.get(m).accepts(v) for v in values)]
    if len(names) == 1 and values:
        return names[0]
    by_name = " or ".join(f"encode({m}=[...])" for m in names or model.towers)
    if not values:
        raise ModelError(f"encode: an empty list has no modality; write {by_name}")
    if names:
        ambiguous = next(v for v in values if sum(modalities.get(m).accepts(v) for m in model.towers) > 1)
        raise ModelError(f"encode: {_shown(ambiguous)} may be {' or '.join(names)}; write {by_name}")
    strange = next((v for v in values if not any(modalities.get(m).accepts(v) for m in model.towers)), None)
    what = "values of several modalities in one list" if strange is None else f"no tower takes {_shown(strange)} by its type"
    raise ModelError(f"encode: {what}; write {by_name}")


def _shown(value: object) -> str:
    return repr(value[:60]) if isinstance(value, str) else f"a value of type {type(value).__name__}"
