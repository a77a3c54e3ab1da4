"""The task "zero_shot": classify rows by the embeddings of class names, without training a classifier.

The embedding of a class name is the mean over all prompt templates (CLIP, arXiv 2103.00020, section 3.1.4). A row gets the
class with the nearest name. A class may have several names, each of which has its own embedding.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import Embeddings, direction
from mmtune.errors import DataError, DataWarning, ModelError
from mmtune.evaluation.tasks.classified import Classified, confusion_counts
from mmtune.evaluation.tasks.task import EvaluationTask, TaskInputs, class_labels, grouped_by_class
from mmtune.evaluation.tasks.training_wording import wording_note
from mmtune.model.encode import encode_values
from mmtune.recipe.prompts_block import ZERO_SHOT, parse_prompts
from mmtune.search.exact_scores import exact_keys
from mmtune.search.tie_order import GRID, tie_order
from mmtune.search.vectors import normalize_rows

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


@dataclass
class ZeroShot(EvaluationTask):
    """Classify each row by the names of the classes, and compare with its true class.

    label: "group" or a metadata column, the true class
    class_names: a metadata column or text modality with the name of each row's class; default: `label` itself
    prompts: prompt templates with one {}, whose embeddings are averaged; default: those of the model
    """

    label: str = "group"
    class_names: str | None = None
    prompts: Sequence[str] = ()

    def choose_modalities(self, model: "Model", data: "Data", wanted: Sequence[str] | None) -> list[str]:
        chosen = super().choose_modalities(model, data, wanted)
        if not wanted and all(modalities.get(m).language for m in chosen):
            raise DataError(
                f"{data.spec}: zero_shot classifies images or sounds by texts, but the data have only {', '.join(data.modalities)}"
            )
        return chosen

    def run(self, inputs: TaskInputs) -> dict[str, Classified]:
        labels, labelled = class_labels(inputs.data, self.label)
        tower = language_tower(inputs.model)
        names = names_of_classes(labels, inputs.column(self.class_names) if self.class_names else None, inputs.data.spec)
        if note := wording_note(inputs.model, tower, names, self.prompts):
            warnings.warn(note, DataWarning, stacklevel=2)
        classes = class_vectors(inputs.model, names, self.prompts, inputs.batch_size)
        vectors = grouped_by_class(inputs.data, inputs.embed(keep=labelled), labels)
        if not set(vectors) - {tower}:
            raise DataError(f"zero_shot: {tower} is the modality of the class names; choose another modality to classify")
        unlabelled = {m: int((inputs.data.present[m] & ~labelled).sum()) for m in vectors}
        return {m: zero_shot(e, classes, direction(m, tower), unlabelled[m]) for m, e in vectors.items() if m != tower}


def language_tower(model: "Model") -> str:
    """Return the modality that embeds class names, the model's first text modality. Raises ModelError if it has none."""
    for name in model.towers:
        if modalities.get(name).language:
            return name
    raise ModelError(f"zero_shot: class names need a text modality; this model has {', '.join(model.towers)}")


def class_vectors(
    model: "Model", names: Mapping[str, Sequence[str]], templates: Sequence[str] = (), batch_size: int = 64
) -> Embeddings:
    """Embed each name of each class, averaged over prompt templates. The groups of the result are the classes.

    templates: prompt templates; default: the model's `zero_shot` templates, or else its default templates

    Raises RecipeError for a template without exactly one {}.
    """
    tower, prompts = language_tower(model), model.prompts
    if templates:
        parsed = parse_prompts({tower: {ZERO_SHOT: list(templates)}})
        prompts = {**prompts, tower: {**prompts.get(tower, {}), **parsed[tower]}}
    prompted = model.with_prompts(prompts)
    role = ZERO_SHOT if ZERO_SHOT in prompts.get(tower, {}) else None
    pairs = [(c, n) for c in sorted(names) for n in sorted(set(names[c]))]
    vectors = encode_values(prompted, tower, [n for _, n in pairs], batch_size, role)
    ids = [f"{c}: {n}" for c, n in pairs]
    return Embeddings(ids, [c for c, _ in pairs], {tower: np.arange(1, len(ids) + 1)}, vectors, model.fingerprint)


def names_of_classes(labels: Sequence[str | None], names: Sequence[str | None] | None, source: str) -> dict[str, list[str]]:
    """Return {class: its names} for rows with these labels. Without `names`, a class's label is its name.

    names: the class name of each row
    source: the dataset, for messages

    Raises DataError for fewer than two classes, for a class without a name, and for a name that two classes share.
    """
    out: dict[str, list[str]] = {c: [c] if names is None else [] for c in labels if c is not None}
    for label, name in zip(labels, names or [], strict=False):
        if label is not None and name is not None and name not in out[label]:
            out[label].append(name)
    if len(out) < 2:
        raise DataError(f"{source}: {len(out)} class among the rows; classification needs at least two")
    nameless = [c for c, of_class in out.items() if not of_class]
    if nameless:
        raise DataError(f"{source}: no row of class {nameless[0]!r} has a class name")
    owner: dict[str, str] = {}
    for c, of_class in out.items():
        for name in of_class:
            if owner.setdefault(name, c) != c:
                raise DataError(
                    f"{source}: classes {owner[name]!r} and {c!r} have the same name {name!r}; give them different names"
                )
    return out


def zero_shot(rows: Embeddings, names: Embeddings, direction: str, skipped: int = 0) -> Classified:
    """Classify `rows`, whose groups are their true classes, by `names`, whose groups are the classes.

    Ties go to the class that comes last, as in all rankings.

    skipped: number of rows left out already; rows without a class are added to it
    """
    classes = sorted({str(c) for c in names.groups})
    number = {c: i for i, c in enumerate(classes)}
    at = np.array([i for i, g in enumerate(rows.groups) if g in number], np.int64)
    truth = np.array([number[str(rows.groups[i])] for i in at], np.int64)
    predicted = np.zeros(len(at), np.int64)
    for start in range(0, len(at), 1024):
        part = slice(start, start + 1024)
        predicted[part] = nearest_class(normalize_rows(rows.vectors[at[part]], direction), names)[0]
    confusion = confusion_counts(truth, predicted, len(classes))
    ids, left_out = [rows.ids[i] for i in at], skipped + len(rows.ids) - len(at)
    return Classified(direction, classes, confusion, left_out, row_ids=ids, truth=truth, predicted=predicted)


def nearest_class(rows_ND: np.ndarray, names: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Return the class with the nearest name [N], as its number among the sorted classes, and the cosines [N, C] of the classes.

    rows_ND: L2-normalised vectors
    names: embedded names, whose groups are the classes; the cosine of a class is that of its nearest name

    Ties go to the class that comes last, as in all rankings.
    """
    class_of_name = [str(c) for c in names.groups]
    classes = sorted(set(class_of_name))
    number = {c: i for i, c in enumerate(classes)}
    down = np.array(tie_order([f"{c}\0{i}" for c, i in zip(class_of_name, names.ids, strict=True)]), np.int64)
    class_C = np.array([number[class_of_name[i]] for i in down], np.int64)
    keys = exact_keys(rows_ND, normalize_rows(names.vectors[down], "class names"))
    order = np.argsort(class_C, kind="stable")
    first = np.searchsorted(class_C[order], np.arange(len(classes)))
    return class_C[keys.argmax(1)], np.maximum.reduceat(keys[:, order], first, axis=1) / GRID
