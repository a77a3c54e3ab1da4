"""Lookup of a part by name: in the table of its room, or by the place where its code lies, `package.module:Attribute`.

Every extension point (modality, tower family, loss, miner source, guard, scorer, store, metric, task, augmentation) has such a
table, name -> target. A target is the part itself, or the string "package.module:Attribute", which is imported when it is asked
for. Users add a part with the room's `register(name, target)`, or write its target where the name would stand.
"""

import difflib
import importlib
import os
import re
import sys
import threading
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, TypeVar

from mmtune.errors import MmtuneError, RecipeError

Target = TypeVar("Target")
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_PATH = threading.RLock()


def is_target(name: str) -> bool:
    """Whether `name` has the form `package.module:Attribute`."""
    return _TARGET.fullmatch(name) is not None


def register(table: MutableMapping[str, Target], name: str, target: Target, kind: str) -> None:
    """Add a part to the table of its room. RecipeError for a name that would read as a target or a place."""
    if not name or not re.fullmatch(r"\w[\w.-]*", name):
        raise RecipeError(f"{kind} {name!r}: a name has letters, digits, _, - and . only")
    if isinstance(target, str) and not is_target(target):
        raise RecipeError(f"{kind} {name!r}: the target {target!r} is not of the form package.module:Attribute")
    table[name] = target


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'?" where a known name is near, else "; there are: x, y": the end of an error message."""
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known) or 'none'}"


def resolve(
    table: Mapping[str, object],
    name: str,
    kind: str,
    *,
    key: str = "",
    error: type[MmtuneError] = RecipeError,
) -> Any:
    """The part that `name` stands for: the table's entry of that name, or the attribute at `package.module:Attribute`.

    Modules are found among the installed ones and in the working directory. kind: what the part is called in messages
    ("loss"); key: the recipe key or option that held the name; error: the class that is raised for an unknown name (with the
    nearest known one), for a module or attribute that is not there (with the places searched), and for a module whose import
    fails.
    """
    start = f"{key}: " if key else ""
    target = table.get(name, name if is_target(name) else None)
    if target is None:
        raise error(f"{start}no {kind} {name!r}{nearest(name, table)} (or package.module:Name)")
    if not isinstance(target, str):
        return target
    return import_target(target, kind, key=key, error=error)


def import_target(target: str, kind: str, *, key: str = "", error: type[MmtuneError] = RecipeError) -> Any:
    """The attribute at `package.module:Attribute`, or the module itself where the string has no colon; see `resolve`."""
    start = f"{key}: " if key else ""
    module_name, colon, path = target.partition(":")
    part = import_module(module_name, f"{start}{kind} {target!r}", error)
    for attribute in path.split(".") if colon else ():
        if not hasattr(part, attribute):
            public = [n for n in vars(part) if not n.startswith("_")]
            raise error(f"{start}{kind} {target!r}: {module_name} has no {attribute!r}{nearest(attribute, public)}")
        part = getattr(part, attribute)
    return part


def import_module(name: str, what: str, error: type[MmtuneError] = RecipeError) -> Any:
    """The module `name`, searched for in the working directory too (after the installed packages, for this import alone).
    `what` starts the message of `error` where it cannot be imported."""
    here = os.getcwd()
    with _PATH:
        added = here not in sys.path
        if added:
            sys.path.append(here)
            importlib.invalidate_caches()
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as e:
            if e.name and (name == e.name or name.startswith(f"{e.name}.")):
                raise error(f"{what}: no module {name!r} among the installed packages nor in {here}") from None
            raise error(f"{what}: importing {name!r} failed: {e}") from e
        except MmtuneError:
            raise
        except Exception as e:  # the module is somebody else's code and may raise anything
            raise error(f"{what}: importing {name!r} failed: {type(e).__name__}: {e}") from e
        finally:
            if added and here in sys.path:
                sys.path.remove(here)
