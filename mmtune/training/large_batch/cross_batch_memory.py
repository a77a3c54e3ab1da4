"""Cross-batch memory: a queue of embeddings from earlier batches, used as additional negatives.

XBM (Wang et al. 2020, arXiv 1912.06798): embeddings change slowly during training, so those of the last batches are almost as
useful as fresh ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn

from mmtune.contracts import Batch, modality_of_view
from mmtune.training.unique_items import label_kinds, unique_items


@dataclass(slots=True)
class QueuedItems:
    """M queued items of one modality, newest first.

    z: embeddings [M, D]
    labels: labels of the items, as in `losses.positives_mask.ItemLabels`
    content: content label of each item [M]
    index: number of a dataset row that contains each item [M]
    """

    z: Tensor
    labels: dict[str, tuple[Tensor, Tensor]]
    content: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.z)

    def to(self, device: torch.device) -> "QueuedItems":
        """Return the items on `device`. The queue of a resumed run is loaded to the CPU, so it may have to be moved."""
        labels = {k: (i.to(device), v.to(device)) for k, (i, v) in self.labels.items()}
        return QueuedItems(self.z.to(device), labels, self.content.to(device), self.index.to(device))

    def select(self, mask: Tensor) -> "QueuedItems":
        """Return the items for which `mask` [M] is True."""
        if bool(mask.all()):
            return self
        position = torch.cumsum(mask, 0) - 1
        labels = {k: (position[i[mask[i]]], v[mask[i]]) for k, (i, v) in self.labels.items()}
        return QueuedItems(self.z[mask], labels, self.content[mask], self.index[mask])


class StoredQueue(TypedDict):
    """The queue of one modality in a checkpoint, with the fields of `QueuedItems`."""

    z: Tensor
    labels: dict[str, tuple[Tensor, Tensor]]
    content: Tensor
    index: Tensor


class MemoryState(TypedDict):
    """State of a CrossBatchMemory in a checkpoint.

    It contains only tensors and plain values, because checkpoints are loaded with `weights_only=True`.
    """

    steps: int
    stored: dict[str, StoredQueue]


class CrossBatchMemory(nn.Module):
    """Keeps the last `size` items of each modality as candidates for the next batches.

    A queued item that shares a label with a query (its own earlier embedding, or its group) is not a negative of this query. A
    queued item whose content is in the current batch is left out, because the batch has a fresh embedding of it. The queue is
    part of `state_dict`, so that a resumed run continues identically.

    start: number of steps after which the queue is used; in the first steps embeddings change too fast
    """

    def __init__(self, size: int, start: int = 0) -> None:
        super().__init__()
        self.size, self.start, self.steps = size, start, 0
        self.queues: dict[str, QueuedItems] = {}

    def candidates(self, modality: str, batch: Batch) -> QueuedItems | None:
        """Return the queued items of `modality` whose content is not in `batch`, or None if there are none to use yet."""
        queue = self.queues.get(modality)
        if queue is None or self.steps < self.start:
            return None
        queue = queue.to(batch.index.device)
        in_batch = batch.labels[modality][batch.item_of_row[modality] >= 0]
        queue = queue.select(~torch.isin(queue.content, in_batch))
        return queue if len(queue) else None

    @torch.no_grad()
    def push(self, z: dict[str, Tensor], batch: Batch) -> None:
        """Add the batch's items to the queue. Older embeddings of the same content, and the oldest beyond `size`, are dropped."""
        self.steps += 1
        for m, vectors in z.items():
            if modality_of_view(m) != m:
                continue
            present = batch.item_of_row[m] >= 0
            items = unique_items(batch, m, present, present)
            labels = items.labels(batch, label_kinds(batch, *batch.item_of_row))
            content, index = batch.labels[m][items.first_row], batch.index[items.first_row]
            newest = QueuedItems(vectors.detach().float()[batch.item_of_row[m][items.first_row]], labels, content, index)
            self.queues[m] = _join(newest, self.queues.get(m), self.size)

    def get_extra_state(self) -> MemoryState:
        """Called by `state_dict`."""
        stored: dict[str, StoredQueue] = {
            m: {"z": q.z, "labels": q.labels, "content": q.content, "index": q.index} for m, q in self.queues.items()
        }
        return {"steps": self.steps, "stored": stored}

    def set_extra_state(self, state: MemoryState) -> None:
        """Called by `load_state_dict`."""
        self.steps = state["steps"]
        self.queues = {m: QueuedItems(s["z"], s["labels"], s["content"], s["index"]) for m, s in state["stored"].items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CrossBatchMemory":
        for q in self.queues.values():
            q.z, q.content, q.index = fn(q.z), fn(q.content), fn(q.index)
            q.labels = {k: (fn(i), fn(v)) for k, (i, v) in q.labels.items()}
        return super()._apply(fn, recurse)


def _join(newest: QueuedItems, queue: QueuedItems | None, size: int) -> QueuedItems:
    """Put `newest` before `queue`, without queued items of the same content, and keep the first `size` items."""
    if queue is not None:
        queue = queue.to(newest.z.device)
        queue = queue.select(~(torch.isin(queue.content, newest.content) & (queue.content != 0)))
        n = len(newest)
        labels = {
            k: (torch.cat([i, queue.labels[k][0] + n]), torch.cat([v, queue.labels[k][1]])) if k in queue.labels else (i, v)
            for k, (i, v) in newest.labels.items()
        }
        labels |= {k: (i + n, v) for k, (i, v) in queue.labels.items() if k not in labels}
        both = zip((newest.z, newest.content, newest.index), (queue.z, queue.content, queue.index), strict=True)
        z, content, index = (torch.cat(tensors) for tensors in both)
        newest = QueuedItems(z, labels, content, index)
    return newest.select(torch.arange(len(newest), device=newest.z.device) < size)
