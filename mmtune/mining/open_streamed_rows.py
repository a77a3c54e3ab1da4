"""Open streamed DATA to mine: its rows are listed, hashed and embedded in one pass over the shards, and no value is kept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.data.shards.dataset import Data
from mmtune.embedding.open_stream import open_to_embed
from mmtune.errors import RecipeError
from mmtune.mining.near_duplicates import looks_for_near_duplicates
from mmtune.recipe.mining_block import MiningOptions
from mmtune.runtime.distributed import Processes

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

FIX = "needs single values, which --read stream does not give; leave it out, or read DATA with an index (--read index)"


def refuse_single_values(options: MiningOptions, has_verifier: bool) -> None:
    """Raise RecipeError, which names the option, if mining with these options reads single values of the rows."""
    if has_verifier:
        raise RecipeError(f"--verifier: {FIX}")
    if "lexical" in options.sources:
        raise RecipeError(f"mining.sources: lexical {FIX}")


def open_streamed_rows(
    data: str,
    model: "Model",
    only: Sequence[str] | None,
    options: MiningOptions,
    *,
    embed: bool,
    batch_size: int,
    quiet: bool,
    skip_bad: bool,
    processes: Processes,
) -> Data:
    """Read DATA from start to end once. `embed_data` then returns the vectors, and `hash_contents` the hashes, without another reading.

    only: the mined modalities; None means all that model and data have in common
    embed: False if the vectors are stored already
    """
    hashed = modalities.names() if looks_for_near_duplicates(options) else []
    return open_to_embed(
        data,
        model,
        only,
        batch_size,
        quiet,
        skip_bad,
        hashed=[m for m in hashed if modalities.get(m).near_duplicate_distance >= 0],
        embed=embed,
        processes=processes,
    )
