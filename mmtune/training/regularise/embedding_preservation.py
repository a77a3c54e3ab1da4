"""Embedding preservation: keep the embeddings of some rows near those of the base model (feature distillation from the base).

It differs from L2-SP, which keeps the weights near, and from replay, which trains the retention rows' pairs as well.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from mmtune.contracts import Embeddings, Preprocess
from mmtune.data.decode import decode_row
from mmtune.data.identity_labels import first_occurrences
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.training.fixed_order import gradients_in_fixed_order

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


class EmbeddingPreservation:
    """The loss weight * mean over modalities of the mean of 1 - cosine(embedding, the base model's embedding).

    Each optimizer step draws other rows, by `seed` and the number of the step alone, so that a resumed run draws the same. The
    model runs in evaluation mode, in which embeddings are served: without dropout, and with the running statistics of BatchNorm.

    data: the rows to preserve
    base: the base model's embeddings of them
    preprocess: preprocessing of each modality of `base`
    stored: {modality: {content label: item}}, stored features of frozen towers, which are collated instead of preprocessed values
    """

    def __init__(
        self,
        data: "Data",
        base: Mapping[str, Embeddings],
        preprocess: Mapping[str, Preprocess],
        *,
        weight: float,
        batch_size: int,
        seed: int,
        stored: Mapping[str, Mapping[int, dict[str, Tensor]]] | None = None,
        processes: Processes = SINGLE_PROCESS,
    ):
        self.data, self.preprocess, self.stored, self.processes = data, preprocess, stored or {}, processes
        self.weight, self.batch_size, self.seed = weight, batch_size, seed
        self.rows: dict[str, np.ndarray] = {}
        self.targets: dict[str, Tensor] = {}
        for m, e in base.items():
            rows = np.flatnonzero(data.present[m])
            first, _ = first_occurrences(data.labels[m][rows])  # each content once
            self.rows[m], self.targets[m] = rows[first], torch.from_numpy(e.vectors[first])

    def add_gradient(self, model: "Model", step: int, autocast: Callable[[], AbstractContextManager[None]]) -> float:
        """Add this process's part of the gradient to the parameters, and return its part of the loss without the weight."""
        total = 0.0
        with _evaluation_mode(model), gradients_in_fixed_order(model.device):
            for m in self.rows:
                at = self.drawn(m, step)
                mine = at[self.processes.local_slice(len(at))]
                if not len(mine):
                    continue
                inputs = {k: v.to(model.device) for k, v in self._inputs(m, mine).items()}
                with autocast():
                    z = model({m: inputs})[m]
                target = self.targets[m][mine].to(z.device)
                loss = (1 - (z.float() * target).sum(1)).sum() / (len(at) * len(self.rows))
                if loss.requires_grad:
                    (self.weight * loss).backward()
                total += float(loss.detach())
        return total

    def drawn(self, modality: str, step: int) -> np.ndarray:
        """Return the positions (in `rows`) that a step draws, without repetition."""
        rng = np.random.default_rng([self.seed, step])
        return rng.choice(len(self.rows[modality]), min(self.batch_size, len(self.rows[modality])), replace=False)

    def _inputs(self, m: str, at: np.ndarray) -> dict[str, Tensor]:
        preprocess = self.preprocess[m]
        if m in self.stored:
            return preprocess.collate([self.stored[m][int(self.data.labels[m][i])] for i in self.rows[m][at]])
        return preprocess.collate([preprocess(decode_row(self.data, int(i), m)) for i in self.rows[m][at]])


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Context manager in which all modules are in evaluation mode; afterwards each has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
