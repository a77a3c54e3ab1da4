"""A recipe's YAML file with dotted overrides -> plain data; and which keys differ between two recipes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmtune.errors import RecipeError


def read_document(path: str | Path, overrides: Sequence[str] = ()) -> object:
    """The YAML document at `path` with `key.sub=value` overrides applied (values are YAML). RecipeError names file and key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    for item in overrides:
        if "=" not in item:
            raise RecipeError(f"{item!r} is not an override; write key.sub=value, e.g. train.epochs=12")
    try:
        merged = OmegaConf.load(path)
        for item in overrides:  # one by one, so that a mapping replaces a string and the error names its own override
            key, _, text = item.partition("=")
            value = OmegaConf.from_dotlist([f"value={text}"]).get("value") if text else ""
            OmegaConf.update(merged, key, value, force_add=True)
        return OmegaConf.to_container(merged, resolve=True)
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such recipe") from None
    except (YAMLError, OmegaConfBaseException, OSError) as e:
        raise RecipeError(f"{path}: {' '.join(str(e).split())}") from None


def without_blanks(value: object) -> object:
    """`value` without the keys that are still "???" (to be filled in): they count as missing."""
    if isinstance(value, Mapping):
        return {k: without_blanks(v) for k, v in value.items() if v != "???"}
    return value


def changed_keys(old: object, new: object, path: str = "") -> list[str]:
    """Dotted keys in which two recipes, as plain data, differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [c for k in keys for c in changed_keys(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [path]
