"""Checks of the options of augmentations, and classes of libraries chosen by name. Errors do not name the recipe key: the caller adds it."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from mmtune.errors import MissingExtra, RecipeError
from mmtune.runtime.plugins import nearest


def checked_range(name: str, values: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """Return (minimum, maximum) if low <= minimum <= maximum <= high; raises RecipeError otherwise."""
    if not all(math.isfinite(v) for v in values) or not low <= values[0] <= values[1] <= high:
        limits = f"from {low:g} to {high:g}" if math.isfinite(high) else f"of {low:g} or more"
        raise RecipeError(f"{name}: {list(values)} is not a range [MIN, MAX] {limits}")
    return values


def sorted_files(folder: str, extensions: Collection[str]) -> list[str]:
    """All files in a folder and its subfolders with one of the extensions, sorted, so that every machine numbers them alike."""
    directory = Path(folder)
    if not directory.is_dir():
        raise RecipeError(f"folder: {folder} is not a directory")
    files = sorted(str(p) for p in directory.rglob("*") if p.suffix[1:].lower() in extensions and p.is_file())
    if not files:
        raise RecipeError(f"folder: no sounds in {folder} ({', '.join(extensions)})")
    return files


def require_extra(step: str, library: str, error: ImportError) -> MissingExtra:
    """The error for an augmentation whose library is not installed."""
    return MissingExtra(f'{step} needs {library}: pip install "mmtune[augment]" ({error})')


def library_transform(
    library: object, name: str, known: Collection[str], options: Mapping[str, object], p_beside: bool = True
) -> Callable[..., object]:
    """Create a transform of a library by the name of its class.

    library: the module that has the class
    known: names that are allowed
    options: its keyword arguments
    p_beside: whether the recipe's p replaces an argument p of the class

    Raises RecipeError for another name, an unknown option, and for values that the class refuses.
    """
    if name not in known:
        raise RecipeError(f"no transform {name!r}{nearest(name, known)}")
    cls = getattr(library, name)
    parameters = inspect.signature(cls).parameters
    for option in options:
        if option not in parameters or (option == "p" and p_beside):
            own = [p for p in parameters if p != "p" or not p_beside]
            hint = "; give p beside the name of the step" if option == "p" else nearest(option, own)
            raise RecipeError(f"{name} has no option {option!r}{hint}")
    try:
        return cls(**options)
    except Exception as e:  # a library raises AssertionError, ValueError, TypeError or what its own checks raise
        raise RecipeError(f"{name}: {type(e).__name__}: {str(e) or 'a value is out of range'}".partition("\n")[0]) from None
