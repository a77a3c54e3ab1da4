"""Lookup of plugins by registered name or by import path, `package.module:Attribute`.

Every extension point (modality, backbone, loss, miner source, guard, scorer, store, metric, task, augmentation) has a table that
maps names to targets. A target is the plugin object itself, or a string "package.module:Attribute" that is imported on first use.
Users add a plugin with `mmtune.register_...(name, target)`, or write the string "package.module:Attribute" in place of a name.
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
_PATH = threading.RLock()  # guards sys.path while `import_module` has changed it


def is_target(name: str) -> bool:
    """Whether `name` has the form `package.module:Attribute`."""
    return _TARGET.fullmatch(name) is not None


def register(table: MutableMapping[str, Target], name: str, target: Target, kind: str) -> None:
    """Add a plugin to the table of its extension point.

    table: name -> target of the extension point; changed in place
    name: letters, digits, `_`, `-` and `.`
    target: the plugin object, or "package.module:Attribute"
    kind: what the plugin is called in error messages, e.g. "loss"

    Raises RecipeError if `name` has other characters, or if a string `target` is not of the form package.module:Attribute.
    """
    if not name or not re.fullmatch(r"\w[\w.-]*", name):
        raise RecipeError(f"{kind} {name!r}: a name has letters, digits, _, - and . only")
    if isinstance(target, str) and not is_target(target):
        raise RecipeError(f"{kind} {name!r}: the target {target!r} is not of the form package.module:Attribute")
    table[name] = target


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: "; did you mean 'x'?" if a known name is similar to `name`, else "; there are: x, y"."""
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
    """Return the plugin that `name` refers to: a name in the table, or an import path `package.module:Attribute`.

    Modules are searched for among the installed packages and in the working directory.

    table: name -> target of the extension point
    kind: what the plugin is called in error messages, e.g. "loss"
    key: the recipe key or command-line option that `name` comes from; starts the error message
    error: exception class that is raised if the name is unknown, or if its module or attribute cannot be imported
    """
    start = f"{key}: " if key else ""
    target = table.get(name, name if is_target(name) else None)
    if target is None:
        raise error(f"{start}no {kind} {name!r}{nearest(name, table)} (or package.module:Name)")
    if not isinstance(target, str):
        return target
    return import_target(target, kind, key=key, error=error)


def import_target(target: str, kind: str, *, key: str = "", error: type[MmtuneError] = RecipeError) -> Any:
    """Import `package.module:Attribute` and return the attribute; without a colon, return the module.

    The parameters are those of `resolve`.
    """
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
    """Import the module `name`. The working directory is searched, too, after the installed packages and for this import only.

    what: start of the error message
    error: exception class that is raised if the module is not found or its import fails
    """
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
        except Exception as e:  # the module is user code, which may raise anything
            raise error(f"{what}: importing {name!r} failed: {type(e).__name__}: {e}") from e
        finally:
            if added and here in sys.path:
                sys.path.remove(here)
