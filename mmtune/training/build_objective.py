"""Build the Objective of a run from a recipe's `objective`, `matryoshka` and `memory`, and the outputs of its teachers."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmtune.contracts import Pair
from mmtune.errors import RecipeError
from mmtune.recipe.block import check
from mmtune.recipe.training_blocks import MatryoshkaConfig, MemoryConfig
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.plugins import nearest
from mmtune.training.class_label_loss import ClassLabelLoss
from mmtune.training.class_labels import AnyClassLabels, count_classes
from mmtune.training.class_lists import listed_classes
from mmtune.training.large_batch.cross_batch_memory import CrossBatchMemory
from mmtune.training.objective import Objective, projection_name
from mmtune.training.objective_spec import LossTerm, parse_terms
from mmtune.training.teacher_outputs import Teacher, TeacherVectors
from mmtune.training.within_scores import build_within_scores

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat


def build_objective(
    terms: object,
    pairs: Sequence[Pair],
    *,
    dim: int | None = None,
    matryoshka: MatryoshkaConfig | Mapping[str, object] | None = None,
    memory: MemoryConfig | Mapping[str, object] | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    seed: int = 0,
    processes: Processes = SINGLE_PROCESS,
    data: "WeightedConcat | None" = None,
    class_labels: Mapping[str, AnyClassLabels] | None = None,
) -> Objective:
    """Build the Objective of a recipe. Raises RecipeError, naming the key, for terms that are wrong or do not fit the model.

    terms: the recipe's `objective`, as parsed blocks or plain data
    pairs: the pairs of modalities that are trained
    dim: dimension of the model's embeddings; None if unknown
    matryoshka: {dims: [64, 128], weights: [1, 1]}, the embedding prefixes that are trained too, or None. The full dimension is
        always trained; its weight is 1 unless it is listed
    memory: {size, start} of the cross-batch memory, or None
    teachers: {teacher name: its outputs}, for the terms that name a teacher
    seed: seed for initialising learned projections and class proxies
    processes: the processes that share the work of a tiled loss
    data: the training data, in which the classes of class-label losses are counted
    class_labels: {number of a term: its classes}, for terms whose classes are known already (see `open_class_labels`)
    """
    parsed, teachers = parse_terms(terms, pairs), dict(teachers or {})
    for term in parsed:
        _check_teacher(term, teachers)
    dims = _dims(matryoshka, dim) if matryoshka else {}
    config = check(MemoryConfig, memory, "memory") if memory else None
    queue = CrossBatchMemory(config.size, config.start) if config else None
    projections = _projections(parsed, pairs, teachers, dim, seed)
    class_losses = _class_losses(parsed, pairs, data, class_labels or {}, dim, seed)
    within = build_within_scores(parsed, pairs, data)
    return Objective(parsed, pairs, dims, queue, teachers, projections, processes, class_losses, within)


def _class_losses(
    terms: Sequence[LossTerm],
    pairs: Sequence[Pair],
    data: "WeightedConcat | None",
    known: Mapping[str, AnyClassLabels],
    dim: int | None,
    seed: int,
) -> dict[str, ClassLabelLoss]:
    """{number of the term: its loss} for terms that compare embeddings by class labels."""
    losses = {}
    for number, term in ((str(i), t) for i, t in enumerate(terms) if t.family == "class_label"):
        if dim is None or (data is None and number not in known):
            raise RecipeError(
                f"{term.key}: {term.loss} needs the training data and the dimension of embeddings; pass data and dim"
            )
        if number in known:
            labels = known[number]
        else:
            assert data is not None
            wanted: Sequence[Pair] = [(a, b) for a, b in term.pairs or pairs]
            labels = count_classes(data, term.label, wanted, f"{term.key}.label", listed_classes(term))
        losses[number] = ClassLabelLoss(term, labels, dim, seed)
    return losses


def _projections(
    terms: Sequence[LossTerm], pairs: Sequence[Pair], teachers: Mapping[str, Teacher], dim: int | None, seed: int
) -> dict[str, nn.Module]:
    """{name: learned projection} for `feature` terms whose teacher has another dimension, or that set `projection: true`."""
    projections: dict[str, nn.Module] = {}
    for number, term in enumerate(terms):
        teacher = teachers.get(term.teacher or "")
        if term.loss != "feature" or not isinstance(teacher, TeacherVectors):
            continue
        if dim is None:
            raise RecipeError(f"{term.key}: the feature loss needs the dimension of the model's embeddings; pass dim")
        if term.options.get("projection") or teacher.dim != dim:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                for m in sorted({m for pair in term.pairs or pairs for m in pair}):
                    projections[projection_name(number, m)] = nn.Linear(dim, teacher.dim, bias=False)
    return projections


def _check_teacher(term: LossTerm, teachers: Mapping[str, Teacher]) -> None:
    """Raise RecipeError if a teacher that the term names is missing, or does not provide what the term needs."""
    for option, name in (("teacher", term.teacher), ("guide", term.guide)):
        if name is not None and name not in teachers:
            known = nearest(name, list(teachers)) if teachers else "; the recipe has no `teachers`"
            raise RecipeError(f"{term.key}.{option}: there is no teacher {name!r}{known}")
    if term.guide and not isinstance(teachers[term.guide], TeacherVectors):
        raise RecipeError(f"{term.key}.guide: {term.guide!r} only scores pairs; a guide needs embeddings (`model:`)")
    if term.family == "distillation" and term.teacher is None:
        known = nearest("", list(teachers)) if teachers else ""
        raise RecipeError(f"{term.key}.teacher: {term.loss} needs the name of a teacher{known}")
    if term.loss == "feature" and not isinstance(teachers[term.teacher or ""], TeacherVectors):
        raise RecipeError(
            f"{term.key}.teacher: {term.teacher!r} only scores pairs; the feature loss needs embeddings (`model:`)"
        )


def _dims(matryoshka: MatryoshkaConfig | Mapping[str, object], width: int | None) -> dict[int, float]:
    """{prefix dimension: weight} from the recipe's `matryoshka`. Raises RecipeError for dimensions outside 1 to `width`."""
    config = check(MatryoshkaConfig, matryoshka, "matryoshka")
    if min(config.dims) < 1 or (width is not None and max(config.dims) > width):
        raise RecipeError(f"matryoshka.dims: {config.dims} must be between 1 and the model's dimension, {width}")
    return dict(zip(config.dims, config.weights or [1.0] * len(config.dims), strict=True))
