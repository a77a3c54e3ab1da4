"""Open DATA to embed it while it is read from start to end (`read: stream`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtune.data.shards.dataset import Data
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.embedding.embed_rows import shared_modalities, wanted_vectors
from mmtune.embedding.streamed_rows import open_streamed
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def open_to_embed(
    spec: str,
    model: "Model",
    modalities: Sequence[str] | None = None,
    batch_size: int = 64,
    quiet: bool = True,
    skip_bad: bool = False,
    hashed: Sequence[str] = (),
    embed: bool = True,
    processes: Processes = SINGLE_PROCESS,
) -> Data:
    """Read DATA once and embed its rows meanwhile. `embed_data` then returns their vectors without another reading.

    modalities: which modalities to embed; None means all that model and dataset have in common
    hashed: those of the modalities whose values are hashed for the search for near-duplicates
    embed: False: the rows are only listed (and hashed)
    The other parameters are those of `open_streamed`.
    """
    sets = StreamedSets([spec], [1.0], ShardCache(0))
    names = shared_modalities(model, sets, modalities)
    wanted = wanted_vectors(model, names) if embed else []
    return open_streamed(
        sets,
        model if embed else None,
        wanted,
        batch_size=batch_size,
        quiet=quiet,
        skip_bad=skip_bad,
        checked=() if embed else names,
        hashed=[m for m in names if m in hashed],
        processes=processes,
    )
