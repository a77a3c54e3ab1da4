"""Compose a recipe of parts: `include: FILE` or `include: [FILE, FILE]`, with paths relative to the recipe.

Parts are merged in their order, and the recipe's own keys win. A part may include others. Only mappings are merged, key by key; a
list, a plain value and an empty mapping `{}` replace what a part has under that key.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig

INCLUDE = "include"
INCLUDE_SCHEMA: JsonObject = {
    "description": "files that this recipe is composed of, with paths relative to it: a path, or a list of paths. Later files win "
    "over earlier ones, and the keys of the recipe win over those of all files; lists are replaced, not joined",
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
}
"""The key in the JSON Schema of recipe files."""


def load_with_includes(path: str | Path, above: Sequence[Path] = ()) -> "DictConfig | ListConfig":
    """Read a YAML file and merge it over the files that it includes.

    above: the files that include this one, to detect cycles

    Raises RecipeError if an included file is missing or includes itself, or if `include` is neither a path nor a list of paths.
    """
    from omegaconf import DictConfig, ListConfig, OmegaConf

    own = OmegaConf.load(path)
    if not isinstance(own, DictConfig) or INCLUDE not in own:
        return own
    given = OmegaConf.to_container(own[INCLUDE]) if OmegaConf.is_config(own[INCLUDE]) else own[INCLUDE]
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise RecipeError(f"{path}: include: write a path, or a list of paths, relative to the recipe")
    here = Path(path).resolve()
    del own[INCLUDE]
    parts = []
    for name in names:
        part = here.parent / name
        if part.resolve() in (here, *above):
            raise RecipeError(f"{path}: include: {name} includes itself")
        if not part.is_file():
            raise RecipeError(f"{path}: include: no such file: {name} (relative to {here.parent})")
        parts.append(load_with_includes(part, (here, *above)))
    merged: DictConfig | ListConfig = OmegaConf.create({})
    for part in [*parts, own]:
        clear_replaced(merged, part)
        both = OmegaConf.merge(merged, part)
        assert isinstance(both, DictConfig | ListConfig)
        merged = both
    assert isinstance(merged, DictConfig)  # `own` is one
    return merged


def clear_replaced(base: object, over: object) -> None:
    """Remove the keys of `base` that `over` replaces, at any depth, before OmegaConf merges them, which joins or refuses some.

    Only a mapping over a mapping is merged, key by key; an empty mapping, a list and a plain value replace what is there.
    """
    from omegaconf import DictConfig

    if not isinstance(base, DictConfig) or not isinstance(over, DictConfig):
        return
    for key in over:
        if key not in base:
            continue
        old, new = base._get_node(key), over._get_node(key)
        if is_merged(old, new):
            clear_replaced(old, new)
        else:
            del base[key]


def is_merged(old: object, new: object) -> bool:
    """Return whether `new` is merged into `old`: both are mappings, and `new` is not empty."""
    from omegaconf import DictConfig

    if not isinstance(old, DictConfig) or not isinstance(new, DictConfig):
        return False
    return not old._is_none() and not new._is_none() and len(new) > 0
