"""The modalities. A fourth one is one new file and one line in TABLE (or `register` for out-of-tree code)."""

import importlib
from collections.abc import Iterable
from functools import cache

from mmtune.contracts import Modality
from mmtune.errors import RecipeError

TABLE = {
    "image": "mmtune.modalities.image:Image",
    "audio": "mmtune.modalities.audio:Audio",
    "text": "mmtune.modalities.text:Text",
}
RESERVED = {"id", "group", "split"}


def names() -> list[str]:
    """Every modality, in the table's order."""
    return list(TABLE)


@cache
def _load(target: str) -> Modality:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)()


def get(name: str) -> Modality:
    """The modality called `name`. Raises RecipeError naming the known ones."""
    if name not in TABLE:
        raise RecipeError(f"no modality called {name!r}; known: {', '.join(TABLE)} (add one line to mmtune.modalities.TABLE)")
    return _load(TABLE[name])


def register(name: str, target: str) -> None:
    """Add an out-of-tree modality: `target` is "package.module:Class". Its `name` must equal `name`."""
    if name in RESERVED:
        raise RecipeError(f"a modality cannot be called {name!r}: that word is a column of every row")
    TABLE[name] = target


def in_files(names: Iterable[str]) -> list[str]:
    """Those of `names` whose values lie in files; all of them where every one is inline."""
    names = list(names)
    return [n for n in names if not get(n).inline] or names


def by_extension() -> dict[str, str]:
    """File suffix (lower case, no dot) -> modality name."""
    return {e: n for n in TABLE for e in get(n).extensions}
