"""Put data that are given to `mmtune.train` into its recipe."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmtune.data.in_memory import DataLike, pack_in_cache
from mmtune.data.sources.memory_rows import is_in_memory
from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe

AnyRecipe = Recipe | Mapping[str, object] | str | Path


def with_data(
    recipe: AnyRecipe,
    overrides: Sequence[str],
    train: DataLike | None,
    val: DataLike | None,
    *,
    columns: Mapping[str, str] | None,
    id: str | None,
    group: str | None,
) -> tuple[AnyRecipe, Sequence[str]]:
    """Return the recipe and the overrides with the directories of the packed data as `data.train` and `data.val`.

    Rows in memory are packed into a directory of the cache that is named by their content. So a resumed run that is given other
    data has another recipe, and is refused. The parameters are those of `mmtune.train`.
    """
    paths = {
        key: _path(key, data, columns=columns, id=id, group=group)
        for key, data in (("train", train), ("val", val))
        if data is not None
    }
    if isinstance(recipe, str | Path):
        return recipe, [*overrides, *(f"data.{key}={path}" for key, path in paths.items())]
    if isinstance(recipe, Recipe):
        return recipe.model_copy(update={"data": recipe.data.model_copy(update=paths)}), overrides
    block = recipe.get("data") or {}
    if not isinstance(block, Mapping):
        raise RecipeError(f"data: is {block!r}, not a block of keys")
    return {**recipe, "data": {**block, **paths}}, overrides


def _path(key: str, data: DataLike, *, columns: Mapping[str, str] | None, id: str | None, group: str | None) -> str:
    if is_in_memory(data):
        return str(pack_in_cache(data, columns=columns, id=id, group=group))
    if isinstance(data, str | Path):
        return str(data)
    raise RecipeError(f"data.{key}: a {type(data).__name__}; give rows in memory, or packed shards by name")
