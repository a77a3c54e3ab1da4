"""The list of classes of a loss on class labels: the recipe key `objective[N].classes`."""

from collections import Counter
from pathlib import Path

from mmtune.data.identity_labels import identity_string
from mmtune.data.shards.class_values import GROUP
from mmtune.errors import RecipeError, first_line
from mmtune.training.objective_spec import LossTerm

NAMES = "class"
"""The column with the classes in a Parquet file."""


def listed_classes(term: LossTerm) -> list[str] | None:
    """The classes that a term lists, in the order of their numbers, as strings; None if it lists none.

    Raises RecipeError, which names the key, if the file cannot be read, or if the list has fewer than two classes or one twice.
    """
    if term.classes is None:
        return None
    key = f"{term.key}.classes"
    names = _from_file(term.classes, key) if isinstance(term.classes, str) else [str(c) for c in term.classes]
    if term.label in (GROUP, "id"):
        names = [identity_string(name) or "" for name in names]
    where = f"{key}: {term.classes}" if isinstance(term.classes, str) else key
    if "" in names:
        raise RecipeError(f"{where}: class {names.index('')} is empty; leave it out")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise RecipeError(f"{where}: lists the class {twice!r} twice")
    if len(names) < 2:
        raise RecipeError(f"{where}: lists {len(names)} classes; a loss on class labels needs at least 2")
    return names


def _from_file(path: str, key: str) -> list[str]:
    """The classes in a text file, one a line, or in the column `class` of a Parquet file, such as RUN/classes/NUMBER.parquet."""
    try:
        if path.endswith(".parquet"):
            import pyarrow.parquet as pq

            return [str(name) for name in pq.read_table(path, columns=[NAMES])[NAMES].to_pylist()]
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError, KeyError) as e:  # UnicodeDecodeError and ArrowInvalid are ValueErrors
        raise RecipeError(f"{key}: {path}: {first_line(e)}; write a text file with one class a line") from None
    return [name for line in lines if (name := line.removesuffix("\r")).strip()]
