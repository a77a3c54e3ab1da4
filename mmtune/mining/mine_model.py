"""`mmtune.mine`: MODEL and DATA in, a negatives table with its audit out."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.contracts import Scorer
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import MmtuneError, RecipeError
from mmtune.mining.mine import Mined
from mmtune.mining.mine import mine as mine_vectors
from mmtune.mining.verifier import ModelScorer
from mmtune.recipe.block import check
from mmtune.recipe.mining_block import MiningOptions
from mmtune.runtime.distributed import init_processes

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


def mine(
    model: "Model | str | Path",
    data: "Data | str",
    out: str | Path,
    options: "MiningOptions | dict[str, Any] | None" = None,
    *,
    verifier: "Scorer | str | None" = None,
    truth: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    quiet: bool = False,
) -> Mined:
    """Embed DATA with MODEL and mine every direction into the Parquet file `out`; its audit lies beside it.

    verifier: an object with score(pairs), "package.module:Class", or a MODEL. truth: a column of the data with the right group
    of every row, to measure guards by where groups are incomplete. Raises MmtuneError. Started by torchrun, the processes embed
    a share each, the first searches and writes.
    """
    from mmtune.data.shards.dataset import open_data
    from mmtune.model.artifact import load

    if not isinstance(options, MiningOptions):
        options = parse_options(options or {})
    if options.table:
        raise RecipeError(f"mining: table: {options.table} is for training in a recipe; what is mined here goes to --out")
    opened = open_data(data) if isinstance(data, str) else data
    asked = options.directions
    wanted = [m for m in opened.modalities if any(m in d.split("->") for d in asked)] if asked else None
    with init_processes() as processes:  # and then load: by now each knows its own accelerator
        loaded = load(model) if isinstance(model, str | Path) else model
        embedded = embed_data(loaded, opened, wanted, batch_size, quiet or not processes.is_main_process, processes=processes)
        if not processes.is_main_process:
            table, audit, page, mined, document = processes.broadcast()
            return Mined(Path(table), Path(audit), Path(page), mined, document)
        found = mine_vectors(
            embedded,
            out,
            options,
            data=opened,
            verifier=find_verifier(verifier or options.verifier),
            truth=opened.column(truth) if truth else None,
            cache=cache,
            quiet=quiet,
        )
        processes.broadcast([str(found.table), str(found.audit), str(found.page), found.mined, found.document])
        return found


def parse_options(values: dict[str, Any]) -> MiningOptions:
    """Checked options from plain data. RecipeError: one line with the key and what is wrong."""
    return check(MiningOptions, values, "mining")


def find_verifier(spec: "Scorer | str | None") -> "Scorer | Callable[[str, str], Scorer] | None":
    """A Scorer, or a call (a, b) -> Scorer, from what a user names. RecipeError when it cannot be found."""
    if spec is None or not isinstance(spec, str):
        return spec
    module, _, name = spec.partition(":")
    if name.isidentifier() and "." in module and "/" not in module:
        try:
            return getattr(importlib.import_module(module), name)()
        except (ImportError, AttributeError) as e:
            raise RecipeError(f"verifier {spec}: {e}") from None
    from mmtune.model.artifact import load

    try:
        model = load(spec)
    except MmtuneError as e:
        raise RecipeError(f"verifier {spec}: {e}") from None
    return lambda a, b: ModelScorer(model, a, b)
