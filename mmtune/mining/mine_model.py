"""`mmtune.mine`: embed a dataset with a model, mine hard negatives, and write a negatives table with its audit."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import Embeddings, Scorer
from mmtune.data.shards.streamed_sets import Read, is_streamed
from mmtune.embedding.embed_rows import embed_data, shared_modalities
from mmtune.embedding.open_stream import open_to_embed
from mmtune.errors import RecipeError
from mmtune.mining.given_negatives import load_given
from mmtune.mining.mine_vectors import mine_vectors
from mmtune.mining.mining_result import MiningResult
from mmtune.mining.near_duplicates import hashed_modalities
from mmtune.mining.stored_vectors import stored_embeddings
from mmtune.mining.streamed_mining import refuse_streamed
from mmtune.mining.vectors_on_ray import embed_on_ray
from mmtune.mining.verifier import make_verifier
from mmtune.recipe.block import check
from mmtune.recipe.mining_block import MiningOptions
from mmtune.runtime.distributed import init_processes
from mmtune.runtime.ray_cluster import Engine

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.model.dual_encoder import Model


def mine(
    model: "Model | str | Path",
    data: "DataLike",
    out: str | Path,
    options: MiningOptions | Mapping[str, object] | None = None,
    *,
    verifier: Scorer | str | None = None,
    truth: str | None = None,
    batch_size: int = 64,
    vectors: str | Path | None = None,
    cache: str | Path | None = None,
    quiet: bool = False,
    skip_bad: bool = False,
    engine: Engine = "here",
    workers: int | None = None,
    read: Read | None = None,
) -> MiningResult:
    """Embed DATA with MODEL and mine every direction into the Parquet file `out`. The audit is written next to it.

    options: mining options, see `mmtune.recipe.mining_block`
    verifier: an object with score(pairs), the name of a scorer, "package.module:Class", or a MODEL
    truth: a metadata column with the true group of every row, to measure the guards with if the data's groups are incomplete
    batch_size: rows embedded at a time
    vectors: the directory that `mmtune embed` wrote for this model and data. Its vectors are mapped from disk, and nothing is embedded
    cache: a directory in which to keep content hashes, which do not depend on the model
    quiet: show no progress
    skip_bad: leave out values that cannot be decoded, with a DataWarning; by default the first one is a DataError
    engine: "ray" embeds on the Ray cluster of RAY_ADDRESS, or on one that is started on this machine; this process searches and writes
    workers: number of Ray workers; None means one per GPU, or one per CPU core if there is no GPU
    read: "stream" embeds the rows while the shards of `data` are read from start to end, once, and keeps no shard; None streams `pipe:COMMAND`
        only. The verifier and the source `lexical` are refused then, because they need single values

    If started by torchrun, each process embeds its share of the rows, and rank 0 searches and writes. Raises MmtuneError.
    """
    from mmtune.data.skip_bad import open_rows_to_encode
    from mmtune.model.artifact import load

    if not isinstance(options, MiningOptions):
        options = parse_options(options or {})
    if options.table:
        raise RecipeError(
            f"mining.table ({options.table}) names a table to train on, which only a training recipe can use; set --out instead"
        )
    if streamed := is_streamed(data, read):
        refuse_streamed(options, bool(verifier or options.verifier), engine)
    directions = options.directions
    only = list(dict.fromkeys(m for d in directions for m in d.split("->"))) if directions else None
    with init_processes() as processes:  # before the model is loaded, so that each process loads it on its own accelerator
        loaded = load(model) if isinstance(model, str | Path) else model
        silent = quiet or not processes.is_main_process
        stored = Path(vectors) if vectors else None
        if streamed:
            hashed, embed = hashed_modalities(options), stored is None
            opened = open_to_embed(str(data), loaded, only, batch_size, silent, skip_bad, hashed, embed, processes)
        else:
            opened = open_rows_to_encode(data, skip_bad=skip_bad)
        names = shared_modalities(loaded, opened, [m for m in opened.modalities if m in only] if only else None)
        embedded: dict[str, Embeddings] = {}
        if engine == "ray" and not processes.is_single:
            raise RecipeError("--engine ray starts its own workers: leave out torchrun")
        if engine == "ray" and stored is None:
            stored = embed_on_ray(
                model, loaded, data, Path(out), names, batch_size=batch_size, workers=workers, skip_bad=skip_bad, quiet=quiet
            )
        elif stored is None:
            embedded = embed_data(loaded, opened, names, batch_size, silent, processes=processes)
        if not processes.is_main_process:
            table, mined, document = processes.broadcast()
            return MiningResult.beside(Path(table), mined, document)
        given = load_given(opened)
        Path(out).absolute().parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".vectors-", dir=Path(out).absolute().parent) as scratch:
            if stored is not None:
                embedded = stored_embeddings(stored, loaded, opened, names, scratch)
            result = mine_vectors(
                embedded,
                out,
                options,
                data=opened,
                verifier=make_verifier(verifier or options.verifier),
                truth=opened.column(truth) if truth else None,
                cache=cache,
                quiet=quiet,
                judged=given.verdicts(opened.ids) if given else (),
            )
        if stored is not None and not vectors:
            shutil.rmtree(stored)
        processes.broadcast([str(result.table), result.mined, result.document])
        return result


def parse_options(values: Mapping[str, object]) -> MiningOptions:
    """Validate options given as plain values. Raises RecipeError with the wrong key and the reason, in one line."""
    return check(MiningOptions, values, "mining")
