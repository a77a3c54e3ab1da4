"""What the processes of a distributed run tell each other about a streamed batch: its rows, and the inputs of items.

A process reads only its own lanes, but losses need the ids and labels of the whole batch on every process. An item is encoded by
the process in whose slice of the items it falls (`Processes.local_slice`), which is mostly the one that read it; the inputs of the
others are sent. No pickled objects are exchanged.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import safetensors.torch
from torch import Tensor

from mmtune.data.shards.tar_stream import StreamedRow
from mmtune.runtime.distributed import Processes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Inputs: TypeAlias = dict[str, Tensor]
"""The preprocessed tensors of one item, without a batch axis."""
Item: TypeAlias = tuple[str, int]
"""(modality, content label)."""


@dataclass
class LaneRows:
    """The rows that one lane contributes to a batch, as all processes know them.

    lane: number of the lane
    rank: rank of the process that read them
    ids: [n]
    labels: int64 [n, K], in the order of the loader's label names; after them the bits of the float64 values of its columns
    exhausted: whether the lane has no further rows
    """

    lane: int
    rank: int
    ids: list[str]
    labels: np.ndarray
    exhausted: bool


class StreamExchange:
    """Exchanges rows and inputs between all processes.

    processes: the processes
    names: names of the labels of rows
    columns: {numeric metadata column: the recipe key that names it}
    """

    def __init__(self, processes: Processes, names: Sequence[str], columns: Mapping[str, str] | None = None):
        self.processes, self.names, self.columns = processes, list(names), dict(columns or {})
        self._group: ProcessGroup | None = processes.new_group()

    def _gather(self, data: bytes) -> list[bytes]:
        return self.processes.gather_bytes(data, self._group)

    def rows(self, drawn: Mapping[int, tuple[list[StreamedRow], bool]]) -> list[LaneRows]:
        """Exchange the rows that were drawn. Returns those of all lanes, in the order of lanes.

        drawn: {lane of this process: (rows, whether the lane is exhausted)}
        """
        own = [
            LaneRows(lane, self.processes.rank, [r.id for r in rows], self._label_array(rows), exhausted)
            for lane, (rows, exhausted) in drawn.items()
        ]
        if self.processes.is_single:
            return own
        everyone = [x for rank, data in enumerate(self._gather(_pack(own))) for x in _unpack(data, rank, self._width)]
        return sorted(everyone, key=lambda x: x.lane)

    def _label_array(self, rows: Sequence[StreamedRow]) -> np.ndarray:
        labels = np.array([[r.labels[n] for n in self.names] for r in rows], np.int64).reshape(len(rows), len(self.names))
        if not self.columns:
            return labels
        numbers = np.array([r.numbers(self.columns) for r in rows], np.float64)
        return np.concatenate([labels, numbers.reshape(len(rows), len(self.columns)).view(np.int64)], axis=1)

    @property
    def _width(self) -> int:
        return len(self.names) + len(self.columns)

    def reasons(self, own: Mapping[Item, str]) -> dict[Item, str]:
        """Exchange the values that cannot be decoded: {(modality, content label): reason} of all processes."""
        if self.processes.is_single:
            return dict(own)
        parts = self._gather(json.dumps([[m, label, reason] for (m, label), reason in own.items()]).encode())
        return {(m, label): reason for part in parts for m, label, reason in json.loads(part)}

    def inputs(self, to_send: Mapping[Item, Inputs]) -> dict[Item, Inputs]:
        """Exchange inputs of items that another process encodes than the one that read them. Returns those of all processes."""
        flat = {f"{m}|{label}|{k}": t.contiguous() for (m, label), x in to_send.items() for k, t in x.items()}
        received: dict[Item, Inputs] = {}
        for data in self._gather(safetensors.torch.save(flat) if flat else b""):
            for name, tensor in (safetensors.torch.load(data) if data else {}).items():
                m, label, k = name.split("|", 2)
                received.setdefault((m, int(label)), {})[k] = tensor
        return received


def _pack(lanes: Sequence[LaneRows]) -> bytes:
    out = io.BytesIO()
    header = [[x.lane, x.exhausted, x.ids] for x in lanes]
    labels = np.concatenate([x.labels for x in lanes]) if lanes else np.zeros((0, 0), np.int64)
    np.savez(out, header=np.frombuffer(json.dumps(header).encode(), np.uint8), labels=labels)
    return out.getvalue()


def _unpack(data: bytes, rank: int, width: int) -> list[LaneRows]:
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    header, labels = json.loads(arrays["header"].tobytes()), arrays["labels"].reshape(-1, width)
    lanes, start = [], 0
    for lane, exhausted, ids in header:
        lanes.append(LaneRows(lane, rank, ids, labels[start : start + len(ids)], exhausted))
        start += len(ids)
    return lanes
