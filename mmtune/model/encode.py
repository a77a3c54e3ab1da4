"""Signals -> vectors through one tower: the inner loop of every embedding, for users' own values and for packed rows alike."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmtune import modalities
from mmtune.errors import ModelError, Rejected
from mmtune.model.prompts import prompted
from mmtune.runtime.prefetch import DeviceCopier, prefetch

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def vectors(
    model: "Model",
    modality: str,
    items: Iterable[Callable[[], Any]],
    batch_size: int,
    advance: Callable[[int], None],
    role: str | None = None,
) -> Iterator[np.ndarray]:
    """Each item is a call that gives a signal; yields [n, D] a batch. The next batch is decoded and copied to the
    device while the model works.

    role: which of the model's prompts (see `mmtune.model.prompts`) goes around each value.
    """
    preprocess = prompted(model.towers[modality].preprocess, model.prompts, modality, role)
    move = DeviceCopier(model.device)

    def prepare(batch: list[Callable[[], Any]]) -> dict[str, torch.Tensor]:
        return {k: move(v) for k, v in preprocess.collate([preprocess(item()) for item in batch]).items()}

    def batches() -> Iterator[list[Callable[[], Any]]]:
        batch = []
        for item in items:
            batch.append(item)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def forward(inputs: dict[str, torch.Tensor]) -> np.ndarray:
        with torch.inference_mode():
            z = model.encode_inputs(modality, inputs)
        return z.cpu().numpy()

    was_training = model.training
    model.eval()
    try:
        source = batches()
        ahead, after = next(source, None), next(source, None)
        if ahead and after is None:  # one batch, as of a query: nothing to overlap with, so no thread
            yield forward(prepare(ahead))
            advance(len(ahead))
            return
        rest = itertools.chain(filter(None, (ahead, after)), source)
        for size, inputs in prefetch(rest, lambda batch: (len(batch), prepare(batch))):
            yield forward(inputs)
            advance(size)
    finally:
        model.train(was_training)


def in_hand(signals: Iterable[Any]) -> list[Callable[[], Any]]:
    """Signals that are decoded already, as `vectors` takes them."""
    return [lambda s=s: s for s in signals]  # type: ignore[misc]


def _tower(model: "Model", modality: str) -> None:
    if modality not in model.towers:
        raise ModelError(f"this model has no {modality} tower; it has {', '.join(model.towers)}")


def encode_values(
    model: "Model", modality: str, values: Sequence[Any], batch_size: int = 64, role: str | None = None
) -> np.ndarray:
    """What a user has (paths, arrays, strings, ...) -> float32 unit vectors [N, D]. A value that cannot be read: ModelError."""
    _tower(model, modality)
    kind = modalities.get(modality)

    def signal(i: int) -> Callable[[], Any]:
        def read() -> Any:
            try:
                return kind.coerce(values[i])
            except Rejected as e:
                raise ModelError(f"encode: {modality}[{i}]: {e}") from None

        return read

    parts = list(vectors(model, modality, map(signal, range(len(values))), batch_size, lambda n: None, role))
    return np.concatenate(parts) if parts else np.zeros((0, model.dim), np.float32)
