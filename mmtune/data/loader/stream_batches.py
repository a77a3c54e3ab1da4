"""Streamed batches on their way through the loader: drawn, then prepared."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mmtune.contracts import LoadTimes
from mmtune.data.loader.stacked_inputs import StackedInputs
from mmtune.data.loader.stream_exchange import Inputs, Item, LaneRows
from mmtune.data.loader.stream_lanes import LaneSnapshot
from mmtune.data.shards.tar_stream import StreamedRow


@dataclass
class DrawnBatch:
    """A batch whose rows are known, and whose items are being prepared.

    lanes: the rows of all lanes, on all processes
    rows: the rows that this process read
    states: {own lane: where it is after this batch}
    number: number of batches that were drawn up to this one
    prepared: its items
    waited: seconds of waiting for the threads that read shards
    """

    lanes: list[LaneRows] = field(default_factory=list)
    rows: list[StreamedRow] = field(default_factory=list)
    states: dict[int, LaneSnapshot] = field(default_factory=dict)
    number: int = 0
    prepared: "Prepared | None" = None
    waited: float = 0.0

    def __len__(self) -> int:
        return sum(len(x.ids) for x in self.lanes)

    def add(self, other: "DrawnBatch") -> None:
        """Append the rows of `other`, which was drawn later."""
        self.lanes += other.lanes
        self.rows += other.rows
        self.states = other.states
        self.waited += other.waited


@dataclass
class Prepared:
    """inputs: the inputs of items; reasons: why an item cannot be decoded; times: what was done."""

    inputs: dict[Item, Inputs]
    reasons: dict[Item, str]
    times: LoadTimes = field(default_factory=LoadTimes)


@dataclass
class StackedPrepared:
    """A `Prepared` on its way from a worker process."""

    inputs: StackedInputs[Item]
    reasons: dict[Item, str]
    times: LoadTimes

    def unstack(self) -> Prepared:
        """The items' inputs one by one."""
        return Prepared(self.inputs.unstack(), self.reasons, self.times)


def divide_evenly(rows: int, lanes: Sequence[int], turn: int) -> dict[int, int]:
    """Divide `rows` among `lanes` as evenly as possible. In each turn other lanes get the rows that remain."""
    size, more = divmod(rows, len(lanes))
    counts = {lane: size + ((i - turn * more) % len(lanes) < more) for i, lane in enumerate(lanes)}
    return {lane: n for lane, n in counts.items() if n}
