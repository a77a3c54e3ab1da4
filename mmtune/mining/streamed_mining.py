"""What mining of streamed rows cannot be used for, because it reads single values: refused before anything is read."""

from mmtune.errors import RecipeError
from mmtune.recipe.mining_block import MiningOptions
from mmtune.runtime.ray_cluster import Engine

FIX = "needs single values, which --read stream does not give; leave it out, or read DATA with an index (--read index)"


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
