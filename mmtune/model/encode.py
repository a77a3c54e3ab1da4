"""Embed values with one tower, in batches. `Model.encode` and all embedding of datasets use this loop."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmtune import modalities
from mmtune.contracts import Signal
from mmtune.errors import ModelError, Rejected
from mmtune.model.prompts import with_prompt
from mmtune.model.window_groups import preprocess_in_groups
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
    """Yield L2-normalised embeddings [n, D] float32, batch by batch, in the order of the signals.

    signals: functions that each return one decoded value. They are called in a thread: the next batch is decoded, preprocessed
        and copied to the device while the model encodes the current one.
    batch_size: maximum number of signals in a batch; batches of long signals with many windows are smaller
    on_batch: called after each batch with its number of signals
    role: selects the prompt template for texts (see `mmtune.model.prompts`)
    """
    preprocess = with_prompt(model.towers[modality].preprocess, model.prompts, modality, role)
    to_device = DeviceCopier(model.device)

    def collate(items: list[dict[str, torch.Tensor]]) -> tuple[int, dict[str, torch.Tensor]]:
        return len(items), {k: to_device(v) for k, v in preprocess.collate(items).items()}

    def groups(batch: list[Callable[[], Signal]]) -> Iterator[list[dict[str, torch.Tensor]]]:
        return preprocess_in_groups(batch, preprocess, batch_size)

    def forward(inputs: dict[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            z = model.encode_inputs(modality, inputs)
        return z.cpu().numpy()

    was_training = model.training
    model.eval()
    try:
        batches = _batches(signals, batch_size)
        first, second = next(batches, None), next(batches, None)
        if first and second is None:  # a single batch, e.g. a search query: a thread would gain nothing
            for size, inputs in map(collate, groups(first)):
                yield forward(inputs)
                on_batch(size)
            return
        rest = itertools.chain(filter(None, (first, second)), batches)
        for size, inputs in prefetch(itertools.chain.from_iterable(map(groups, rest)), collate):
            yield forward(inputs)
            on_batch(size)
    finally:
        model.train(was_training)


def _batches(signals: Iterable[Callable[[], Signal]], size: int) -> Iterator[list[Callable[[], Signal]]]:
    iterator = iter(signals)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def decoded(signals: Iterable[Signal]) -> list[Callable[[], Signal]]:
    """Wrap decoded signals in functions, the form that `encode_batches` takes."""
    return [lambda s=s: s for s in signals]  # type: ignore[misc]


def encode_values(
    model: "Model", modality: str, values: Sequence[object], batch_size: int = 64, role: str | None = None
) -> np.ndarray:
    """Embed a user's values (paths, arrays, strings, ...): L2-normalised embeddings [N, D] float32.

    Raises ModelError if the model has no tower for the modality, or if a value cannot be read (the message gives its position).
    """
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
    """Return the modality of the model that accepts all `values`, judged by their types (`Modality.accepts`).

    Raises ModelError if no modality or more than one does; the string "a.png", for example, can be a path or a text.
    """
    names = [m for m in model.towers if all(modalities.get(m).accepts(v) for v in values)]
    if len(names) == 1 and values:
        return names[0]
    by_name = " or ".join(f"encode({m}=[...])" for m in names or model.towers)
    if not values:
        raise ModelError(f"encode: the modality of an empty list cannot be inferred; write {by_name}")
    if names:
        ambiguous = next(v for v in values if sum(modalities.get(m).accepts(v) for m in model.towers) > 1)
        raise ModelError(f"encode: {_shown(ambiguous)} may be {' or '.join(names)}; write {by_name}")
    unknown = next((v for v in values if not any(modalities.get(m).accepts(v) for m in model.towers)), None)
    what = "values of several modalities in one list" if unknown is None else f"no tower accepts {_shown(unknown)} by its type"
    raise ModelError(f"encode: {what}; write {by_name}")


def _shown(value: object) -> str:
    return repr(value[:60]) if isinstance(value, str) else f"a value of type {type(value).__name__}"
