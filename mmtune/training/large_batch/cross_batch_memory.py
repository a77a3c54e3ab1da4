"""Cross-batch memory: vectors of earlier batches as further negatives, by identity."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch
from mmtune.training.batch_views import kinds, unique_items

Labels = dict[str, tuple[Tensor, Tensor]]


@dataclass(slots=True)
class Stored:
    """M remembered items of one modality, newest first: vectors [M, D], labels as in Relation, content and dataset row [M]."""

    z: Tensor
    labels: Labels
    content: Tensor
    index: Tensor

    def keep(self, mask: Tensor) -> "Stored":
        """Those where `mask` [M] is True."""
        if bool(mask.all()):
            return self
        place = torch.cumsum(mask, 0) - 1
        labels = {k: (place[i[mask[i]]], v[mask[i]]) for k, (i, v) in self.labels.items()}
        return Stored(self.z[mask], labels, self.content[mask], self.index[mask])


class Memory(nn.Module):
    """The last `size` items of each modality (XBM, Wang et al. 2020, arXiv 1912.06798: vectors drift slowly).

    They serve as candidates only. What shares a label with a query (its own stale twin, its group) is no negative of it; an
    item whose content is in the running batch steps aside for its fresh vector. Used from `start` steps on, when the vectors
    have settled. The state is part of `state_dict`, so that a resumed run goes on the same.
    """

    def __init__(self, size: int, start: int = 0) -> None:
        super().__init__()
        self.size, self.start, self.steps = size, start, 0
        self.stored: dict[str, Stored] = {}

    def beside(self, modality: str, batch: Batch) -> Stored | None:
        """What is remembered of `modality` and is not in `batch`; None while there is nothing to use."""
        stored = self.stored.get(modality)
        if stored is None or self.steps < self.start:
            return None
        here = batch.labels[modality][batch.item_of_row[modality] >= 0]
        stored = stored.keep(~torch.isin(stored.content, here))
        return stored if len(stored.z) else None

    @torch.no_grad()
    def push(self, z: dict[str, Tensor], batch: Batch) -> None:
        """Remember the batch's items, forget the oldest and older vectors of the same content."""
        self.steps += 1
        for m, v in z.items():
            has = batch.item_of_row[m] >= 0
            items = unique_items(batch, m, has, has)
            labels = items.labels(batch, kinds(batch, *batch.item_of_row))
            content, index = batch.labels[m][items.row], batch.index[items.row]
            new = Stored(v.detach().float()[batch.item_of_row[m][items.row]], labels, content, index)
            self.stored[m] = _join(new, self.stored.get(m), self.size)

    def get_extra_state(self) -> dict[str, Any]:
        """Plain tensors and numbers only: a checkpoint is never unpickled."""
        kept = {m: {"z": s.z, "labels": s.labels, "content": s.content, "index": s.index} for m, s in self.stored.items()}
        return {"steps": self.steps, "stored": kept}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.stored = {m: Stored(s["z"], s["labels"], s["content"], s["index"]) for m, s in state["stored"].items()}

    def _apply(self, fn: Any, recurse: bool = True) -> "Memory":
        for s in self.stored.values():
            s.z, s.content, s.index = fn(s.z), fn(s.content), fn(s.index)
            s.labels = {k: (fn(i), fn(v)) for k, (i, v) in s.labels.items()}
        return super()._apply(fn, recurse)


def _join(new: Stored, old: Stored | None, size: int) -> Stored:
    if old is not None:
        old = old.keep(~(torch.isin(old.content, new.content) & (old.content != 0)))
        n = len(new.z)
        labels = {
            k: (torch.cat([i, old.labels[k][0] + n]), torch.cat([v, old.labels[k][1]])) if k in old.labels else (i, v)
            for k, (i, v) in new.labels.items()
        }
        labels |= {k: (i + n, v) for k, (i, v) in old.labels.items() if k not in labels}
        joined = zip((new.z, new.content, new.index), (old.z, old.content, old.index), strict=True)
        z, content, index = (torch.cat(pair) for pair in joined)
        new = Stored(z, labels, content, index)
    return new.keep(torch.arange(len(new.z), device=new.z.device) < size)
