"""Open streamed DATA to mine: its rows are listed, hashed and embedded in one pass over the shards, and no value is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.data.shards.dataset import Data
from mmtune.embedding.open_stream import open_to_embed
from mmtune.errors import RecipeError
from mmtune.mining.near_duplicates import looks_for_near_duplicates
from mmtune.recipe.mining_block import MiningOptions
from mmtune.runtime.distributed import Processes
from mmtune.runtime.ray_cluster import Engine

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

FIX = "needs single values, which --read stream does not give; leave it out, or read DATA with an index (--read index)"


@dataclass(frozen=True)
class OneReading:
    """How streamed rows are read to be mined.

    only: the mined modalities; None means all that model and data have in common
    embed: False if the vectors are stored already
    The other fields are parameters of `open_to_embed`.
    """

    only: Sequence[str] | None
    embed: bool
    batch_size: int
    quiet: bool
    skip_bad: bool
    processes: Processes


def refuse_streamed(options: MiningOptions, has_verifier: bool, engine: Engine) -> None:
    """Raise RecipeError, which names the option, if mining with these options cannot read its rows from start to end once."""
    if has_verifier:
        raise RecipeError(f"--verifier: {FIX}")
    if "lexical" in options.sources:
        raise RecipeError(f"mining.sources: lexical {FIX}")
    if engine == "ray":
        raise RecipeError(
            "--read stream: not with --engine ray; run `mmtune embed` with it, and give its directory as --vectors"
        )


def open_streamed_rows(data: str, model: "Model", options: MiningOptions, reading: OneReading) -> Data:
    """Read DATA from start to end once. `embed_data` then returns the vectors, and `hash_contents` the hashes, without another reading."""
    hashed = modalities.names() if looks_for_near_duplicates(options) else []
    return open_to_embed(
        data,
        model,
        reading.only,
        reading.batch_size,
        reading.quiet,
        reading.skip_bad,
        hashed=[m for m in hashed if modalities.get(m).near_duplicate_distance >= 0],
        embed=reading.embed,
        processes=reading.processes,
    )
