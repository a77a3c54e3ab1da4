"""Classes by their names alone: no row teaches the classifier. A name is the mean of all templates around it (CLIP, arXiv
2103.00020, 3.1.4), and a row gets the class of the name that lies nearest: a class may have several that are unlike each other.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.errors import DataError, ModelError
from mmtune.evaluation.tasks.classify import Classified, count
from mmtune.model.encode import encode_values
from mmtune.model.prompts import ZERO_SHOT, parse_prompts
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import tie_order
from mmtune.search.vectors import unit

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def speaker(model: "Model") -> str:
    """The tower that reads class names: the first of words. ModelError where the model has none."""
    for name in model.towers:
        if modalities.get(name).language:
            return name
    raise ModelError(f"zero_shot: class names need a tower that reads words; this model has {', '.join(model.towers)}")


def class_vectors(
    model: "Model", names: Mapping[str, Sequence[str]], templates: Sequence[str] = (), batch_size: int = 64
) -> Embeddings:
    """A vector for each name of each class (groups: the classes), its `templates` averaged; without any, the model's own
    `zero_shot` prompts, or its plain ones. Raises RecipeError for a template without one {}."""
    words, prompts = speaker(model), model.prompts
    if templates:
        prompts = {**prompts, words: {**prompts.get(words, {}), **parse_prompts({words: {ZERO_SHOT: list(templates)}})[words]}}
    asked = copy.copy(model)
    asked.settings = {**model.settings, "prompts": prompts}
    role = ZERO_SHOT if ZERO_SHOT in prompts.get(words, {}) else None
    pairs = [(c, n) for c in sorted(names) for n in sorted(set(names[c]))]
    found = encode_values(asked, words, [n for _, n in pairs], batch_size, role)
    ids = [f"{c}: {n}" for c, n in pairs]
    return Embeddings(ids, [c for c, _ in pairs], {words: np.arange(1, len(ids) + 1)}, found, model.fingerprint)


def named_classes(labels: Sequence[str | None], names: Sequence[str | None] | None, what: str) -> dict[str, list[str]]:
    """{class: its names} of rows with these labels; a class is called what it is, or what its rows say in `names`.

    Raises DataError for fewer than two classes, for a class without a name, and for a name of two classes.
    """
    out: dict[str, list[str]] = {c: [c] if names is None else [] for c in labels if c is not None}
    for label, name in zip(labels, names or [], strict=False):
        if label is not None and name is not None and name not in out[label]:
            out[label].append(name)
    if len(out) < 2:
        raise DataError(f"{what}: {len(out)} class among the rows; classification needs two")
    nameless = [c for c, found in out.items() if not found]
    if nameless:
        raise DataError(f"{what}: no row of class {nameless[0]!r} says what it is called")
    owner: dict[str, str] = {}
    for c, found in out.items():
        for name in found:
            if owner.setdefault(name, c) != c:
                raise DataError(f"{what}: classes {owner[name]!r} and {c!r} are both called {name!r}: nothing tells them apart")
    return out


def zero_shot(rows: Embeddings, names: Embeddings, direction: str) -> Classified:
    """How `rows`, whose groups are their true classes, were classified by `names`, whose groups are the classes. Ties go to
    the class that comes last, as everywhere; rows without a class are skipped."""
    named = [str(c) for c in names.groups]
    classes = sorted(set(named))
    number = {c: i for i, c in enumerate(classes)}
    down = np.array(tie_order([f"{c}\0{i}" for c, i in zip(named, names.ids, strict=True)]), np.int64)
    at = np.array([i for i, g in enumerate(rows.groups) if g in number], np.int64)
    z, words = unit(rows.vectors[at], direction), unit(names.vectors[down], direction)
    of_name = np.array([number[named[i]] for i in down], np.int64)
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    for start in range(0, len(at), 1024):
        part = slice(start, start + 1024)
        found = of_name[exact_keys(z[part], words).argmax(1)]
        confusion += count([number[str(rows.groups[i])] for i in at[part]], found, len(classes))
    return Classified(direction, classes, confusion, len(rows.ids) - len(at))
