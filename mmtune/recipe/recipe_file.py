"""Read a recipe's YAML file with dotted overrides as plain data, and compare the keys of two recipes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.errors import RecipeError
from mmtune.recipe.included_files import clear_replaced, is_merged, load_with_includes

if TYPE_CHECKING:
    from omegaconf import DictConfig, ListConfig


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> object:
    """Read a YAML file with the files that it includes (see `included_files`) and apply `key.sub=value` overrides, whose values are YAML.

    Raises RecipeError if the file does not exist or is not YAML, or if an override cannot be applied.
    """
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _check_overrides(overrides)
    try:
        merged = load_with_includes(path)
        return _apply(merged, overrides)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe file") from None
    except UnicodeDecodeError as e:
        raise RecipeError(f"{path}: not UTF-8 text ({e.reason} at byte {e.start}); save the recipe as UTF-8") from None
    except RecursionError:
        raise RecipeError(f"{path}: the YAML is nested too deeply") from None
    except (YAMLError, OmegaConfBaseException, OSError, ValueError) as e:
        raise RecipeError(f"{path}: {' '.join(str(e).split())}") from None


def overridden(document: Mapping[str, object], overrides: Sequence[str]) -> object:
    """Apply `key.sub=value` overrides to a recipe given as a mapping. Raises RecipeError if one cannot be applied."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    _check_overrides(overrides)
    try:
        return _apply(OmegaConf.create(dict(document)), overrides)
    except (YAMLError, OmegaConfBaseException, ValueError) as e:
        raise RecipeError(f"overrides: {' '.join(str(e).split())}") from None


def _check_overrides(overrides: Sequence[str]) -> None:
    for item in overrides:
        if "=" not in item:
            raise RecipeError(f"{item!r} is not an override; write key.sub=value, e.g. train.epochs=12")


def _apply(merged: "DictConfig | ListConfig", overrides: Sequence[str]) -> object:
    """Apply one override at a time, so that a mapping can replace a string, and an error message names the override.

    What an override replaces and what it is merged into: see `included_files.clear_replaced`.
    """
    from omegaconf import OmegaConf

    for item in overrides:
        key, _, text = item.partition("=")
        value = OmegaConf.from_dotlist([f"value={text}"]).get("value") if text else ""
        old = OmegaConf.select(merged, key)
        clear_replaced(old, value)
        OmegaConf.update(merged, key, value, merge=is_merged(old, value), force_add=True)
    return OmegaConf.to_container(merged, resolve=True)


FORMAT_KEY, FORMAT = "format", 1
"""The key of the format number of a recipe file, which is no key of a recipe, and the number; a file without it is of format 1."""
BLANK = "???"
"""The value of a key that the user must set; `mmtune init` writes it."""


def blank_keys(value: object, path: str = "") -> list[str]:
    """The dotted keys of a recipe, given as plain data, whose value is BLANK."""
    if isinstance(value, Mapping):
        return [k for name, v in value.items() for k in blank_keys(v, f"{path}.{name}" if path else str(name))]
    return [path] if value == BLANK else []


def without_blanks(value: object) -> object:
    """Remove keys with the value BLANK from a recipe, so that they count as missing."""
    if isinstance(value, Mapping):
        return {k: without_blanks(v) for k, v in value.items() if v != BLANK}
    return value


def value_at(document: object, path: str) -> object:
    """The value at a dotted key of a recipe, given as plain data; None if it has no such key."""
    for key in path.split("."):
        document = document.get(key) if isinstance(document, Mapping) else None
    return document


def changed_keys(old: object, new: object, path: str = "") -> list[str]:
    """The dotted keys whose values differ between two recipes, which are given as plain data."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [c for k in keys for c in changed_keys(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [path]
