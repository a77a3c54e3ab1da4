"""Features of towers that do not change, computed once: epochs, and validation between them, run on what is kept here.

A tower is frozen, so its outputs are too. They stand in the batch where the tower's inputs stood ({"features": [W, dim]}, with
"segments" for values of several windows), the tower passes them through, and the head, the loss and the loop see no difference.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import Embeddings
from mmtune.data.identity_labels import first_seen
from mmtune.data.loader.decode import decode_row
from mmtune.embedding.embed import embed_data
from mmtune.errors import DataError
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.progress import Progress

if TYPE_CHECKING:
    from mmtune.backbones import Tower
    from mmtune.data.loader.loader import Loader
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.model.dual_encoder import Model

FEATURES = "features"
AT_ONCE = 64
"""Values a forward pass, as in embedding."""


class Collate:
    """What a stream asks of a Preprocess when items are features already: to make a batch of them."""

    def __call__(self, signal: Any, rng: Any = None) -> dict[str, Tensor]:
        raise DataError("a value without kept features: the data changed while training")

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """[w_i, dim] a value -> [W, dim], and whose window each is."""
        inputs = {FEATURES: torch.cat([i[FEATURES] for i in items])}
        if len(inputs[FEATURES]) > len(items):
            inputs["segments"] = torch.repeat_interleave(torch.tensor([len(i[FEATURES]) for i in items]))
        return inputs


class Features:
    """The kept features of `names`, by content. While it is open (`with`), the model's towers pass features through."""

    def __init__(self, model: "Model", names: Sequence[str]):
        self.model, self.names = model, list(names)
        self.kept: dict[str, dict[int, Tensor]] = {m: {} for m in names}
        self.towers = {m: model.towers[m] for m in names}
        for m, tower in self.towers.items():
            model.towers[m] = replace(tower, encode=_either(tower))

    def close(self) -> None:
        """The model's own towers again; what was kept is let go."""
        self.model.towers.update(self.towers)
        self.kept = {m: {} for m in self.names}

    def add(self, data: "Data | WeightedConcat", quiet: bool = False) -> None:
        """Compute what is not kept yet of every value of `data`. A value that cannot be read: DataError."""
        for m in self.names:
            if m not in data.modalities:
                continue
            rows = np.flatnonzero(data.present[m])
            first, _ = first_seen(data.labels[m][rows])
            new = [int(i) for i in rows[first] if int(data.labels[m][i]) not in self.kept[m]]
            with Progress(f"features {m}", len(new), quiet=quiet) as progress:
                for start in range(0, len(new), AT_ONCE):
                    part = new[start : start + AT_ONCE]
                    for i, f in zip(part, self._compute(data, m, part), strict=True):
                        self.kept[m][int(data.labels[m][i])] = f
                    progress.advance(len(part))

    def _compute(self, data: "Data | WeightedConcat", m: str, rows: list[int]) -> list[Tensor]:
        """[w_i, dim] on the CPU of each row's value, as an index would get it: deterministic windows, eval mode, float32."""
        tower = self.towers[m]
        items = [tower.preprocess(decode_row(data, i, m)) for i in rows]
        inputs = tower.preprocess.collate(items)
        segments = inputs.pop("segments", torch.arange(len(items)))
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                out = tower.encode({k: v.to(self.model.device) for k, v in inputs.items()}).float().cpu()
        finally:
            self.model.train(training)
        return list(out.split(torch.bincount(segments, minlength=len(items)).tolist()))

    def feed(self, stream: "Loader", quiet: bool = False) -> None:
        """Let a stream's batches carry features. (Its cache answers before anything is decoded.)"""
        self.add(stream.data, quiet)
        for m in self.names:
            stream.preprocess[m] = Collate()
            stream.cache.items |= {(m, label): {FEATURES: f} for label, f in self.kept[m].items()}

    def embed(
        self, model: "Model", data: "Data", wanted: Sequence[str], processes: Processes = SINGLE_PROCESS
    ) -> dict[str, Embeddings]:
        """As `embed_data`, from kept features where there are; for validation between epochs (its vectors name no model)."""
        rest = [m for m in wanted if m not in self.kept]
        found = embed_data(model, data, rest, processes=processes) if rest else {}
        mark = next((e.fingerprint for e in found.values()), "")
        training = model.training
        model.eval()
        try:
            for m in wanted:
                if m in self.kept:
                    found[m] = self._embedded(model, data, m, mark)
        finally:
            model.train(training)
        return {m: found[m] for m in wanted}

    @torch.inference_mode()
    def _embedded(self, model: "Model", data: "Data", m: str, mark: str) -> Embeddings:
        rows = np.flatnonzero(data.present[m])
        content, inverse = np.unique(data.labels[m][rows], return_inverse=True)
        parts = []
        for start in range(0, len(content), 64 * AT_ONCE):
            items = [{FEATURES: self.kept[m][int(c)]} for c in content[start : start + 64 * AT_ONCE]]
            inputs = {k: v.to(model.device) for k, v in Collate().collate(items).items()}
            parts.append(model.encode_inputs(m, inputs).cpu().numpy())
        vectors = np.concatenate(parts)[inverse] if parts else np.zeros((0, model.dim), np.float32)
        labels = {k: v[rows] for k, v in data.labels.items()}
        return Embeddings([data.ids[i] for i in rows], [data.groups[i] for i in rows], labels, vectors, mark)


def _either(tower: "Tower") -> Any:
    def encode(inputs: dict[str, Tensor]) -> Tensor:
        return inputs[FEATURES] if FEATURES in inputs else tower.encode(inputs)

    return encode
