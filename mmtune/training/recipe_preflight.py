"""Checks of a recipe before anything is computed: values that do not fit together, the data, the model, or the disk.

`check_recipe` needs the recipe alone, `check_inputs` the opened data and model. `preflight` has the checks of the objective
against the rows of the batches.
"""

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import Pair, direction
from mmtune.data.loader.mixup import make_augmentation
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.errors import DataError, MmtuneError, RecipeError, TrainingError
from mmtune.evaluation.metrics import metric_columns
from mmtune.evaluation.tasks.evaluate_task import check_options
from mmtune.mining import guards, sources
from mmtune.mining.mine_vectors import mined_directions
from mmtune.mining.mining_rounds import round_epochs
from mmtune.mining.negatives_table import check_fingerprint
from mmtune.quality.caption_words import describe, find_label_words
from mmtune.recipe.class_label_block import ClassLabelTerm
from mmtune.recipe.gate_block import Gate
from mmtune.recipe.mining_block import MiningOptions
from mmtune.recipe.objective_block import AnyTerm
from mmtune.recipe.recipe import Recipe
from mmtune.relevance.judgments import read_verdicts
from mmtune.runtime import plugins
from mmtune.runtime.plugins import nearest
from mmtune.training.large_batch.micro_batches import has_lengths
from mmtune.training.objective_spec import parse_terms
from mmtune.training.stream_limits import refuse_unknown_head_stage, refuse_unknown_length
from mmtune.training.tuning.lp_ft import is_head_stage
from mmtune.training.tuning.tune import check_trainable
from mmtune.training.tuning.tune_spec import parse_tune

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.training.training_inputs import TrainingInputs

CUTOFFS = (1, 5, 10)


def check_recipe(recipe: Recipe) -> None:
    """Raise RecipeError, naming the key, for keys that need another key, do not fit another one, or name what does not exist."""
    train, mining = recipe.train, recipe.mining
    metric_columns(CUTOFFS, [train.metric], "train.metric")
    if recipe.gate is not None and recipe.gate.task is None:
        metric_columns(CUTOFFS, [recipe.gate.metric], "gate.metric")
    elif recipe.gate is not None:
        check_options(str(recipe.gate.task), recipe.gate.task_options, "gate.task_options.")
    if recipe.data.val is None:
        if recipe.data.retention is not None:
            raise RecipeError("data.retention needs data.val: set data.val too")
        if train.patience is not None:
            raise RecipeError("train.patience: early stopping needs a validation metric: set data.val, or train.patience=null")
    for number, term in enumerate(recipe.objective):
        for option, name in teachers_of(term):
            if name is not None and name not in recipe.teachers:
                known = nearest(name, list(recipe.teachers)) if recipe.teachers else "; the recipe has no `teachers`"
                raise RecipeError(f"objective[{number}].{option}: there is no teacher {name!r}{known}")
    if mining is None:
        return
    for name in mining.sources:
        plugins.resolve(sources.TABLE, name, "miner source", key="mining.sources")
    for name in mining.guards.extra:
        plugins.resolve(guards.TABLE, name, "guard", key="mining.guards.extra")
    if mining.judgments is not None:
        try:
            read_verdicts(mining.judgments)
        except (MmtuneError, OSError) as e:
            raise RecipeError(f"mining.judgments: {e}") from None
    default = MiningOptions.model_fields["rounds"].default
    if not mining.table and mining.rounds not in (default, len(round_epochs(train.epochs, mining.rounds))):
        raise RecipeError(
            f"mining.rounds: {mining.rounds} rounds need as many epochs, each with its own negatives, but train.epochs is "
            f"{train.epochs:g}; lower mining.rounds or train longer"
        )


def check_inputs(recipe: Recipe, inputs: "TrainingInputs") -> None:
    """Raise RecipeError, naming the key, for what does not fit the opened data or the model.

    Warns of augmentations that can make captions wrong.
    """
    terms = parse_terms(recipe.objective, inputs.pairs)
    if isinstance(inputs.data, StreamedSets):
        refuse_unknown_length(inputs.data, recipe.train)
        refuse_unknown_head_stage(inputs.data, recipe)
    _check_lengths(recipe, inputs)
    check_trainable(inputs.model, parse_tune(recipe.tune, list(inputs.model.towers), inputs.trained), inputs.trained)
    if (
        recipe.matryoshka is not None
        and not 1 <= min(recipe.matryoshka.dims) <= max(recipe.matryoshka.dims) <= inputs.model.dim
    ):
        raise RecipeError(
            f"matryoshka.dims: {recipe.matryoshka.dims} must be between 1 and the model's dimension, {inputs.model.dim}"
        )
    for m, options in recipe.augment.items():
        if m not in inputs.trained:
            raise RecipeError(f"augment.{m}: {m} is not trained here; the pairs train {', '.join(inputs.trained)}")
        make_augmentation(options, inputs.data)
    augment = {m: options.switched_on for m, options in recipe.augment.items()}
    if augment and not inputs.is_streamed:
        for match in find_label_words(inputs.indexed, augment, np.flatnonzero(inputs.usable)):
            warnings.warn(describe(match, inputs.indexed.ids), stacklevel=2)
    for term in terms:
        if term.weights is not None and not inputs.is_streamed:
            _check_column(inputs.indexed, term.weights, f"{term.key}.weights")
    for key, data in (("data.val", inputs.val), ("data.retention", inputs.retention)):
        if data is not None:
            _check_directions(key, data, inputs.pairs)
    known = [direction(a, b) for a in inputs.data.modalities for b in inputs.data.modalities]
    if recipe.gate is not None:
        _check_gate_direction(recipe.gate, known)
        _check_gate_data(recipe.gate, inputs)
    if recipe.mining is not None:
        _check_mining(recipe.mining, inputs)


def _check_lengths(recipe: Recipe, inputs: "TrainingInputs") -> None:
    """Raise RecipeError if a key sorts inputs by length, and the trained towers have no inputs of unlike length."""
    tokens = recipe.train.micro_batch_tokens
    if tokens is None and recipe.train.length_buckets is None:
        return
    key = "train.length_buckets" if tokens is None else "train.micro_batch_tokens"
    have = [m for m in inputs.trained if has_lengths(inputs.model.towers[m])]
    for m in tokens if isinstance(tokens, Mapping) else ():
        if m not in inputs.trained:
            raise RecipeError(f"{key}.{m}: {m} is not trained here; the pairs train {', '.join(inputs.trained)}")
        if m not in have:
            raise RecipeError(f"{key}.{m}: all inputs of this tower have one length; use train.micro_batch_size")
    if not have:
        raise RecipeError(f"{key}: no trained tower of this model has inputs of unlike length; use train.micro_batch_size")


def check_steps(recipe: Recipe, batches_per_epoch: int) -> None:
    """Raise RecipeError if the warm-up is as long as the run or longer: the learning rate would never reach `train.lr`.

    The short first stage of LP-FT, which has the warm-up of the run that follows it, is not checked.
    """
    total = max(1, round(recipe.train.epochs * -(-batches_per_epoch // recipe.train.gradient_accumulation_steps)))
    if recipe.train.warmup >= total and not is_head_stage(recipe):
        raise RecipeError(
            f"train.warmup: {recipe.train.warmup:g} steps of warm-up do not fit into a run of {total} steps; give fewer, or a "
            "fraction of the run below 1"
        )


def check_run_space(recipe: Recipe, inputs: "TrainingInputs") -> None:
    """Raise TrainingError if the disk lacks the space for the checkpoints and the artifact of the tuned model."""
    sizes = [(p.numel(), p.requires_grad) for p in inputs.model.parameters()]
    trainable, total = sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
    train = recipe.train
    needed = checkpoint_bytes(trainable, total - trainable, train.keep, train.ema is not None, inputs.val is not None)
    check_disk_space(Path(recipe.run.dir), needed)


def check_disk_space(directory: Path, needed: int) -> None:
    """Raise TrainingError if the disk of the run directory has less free space than its checkpoints and artifact need."""
    place = next(p for p in (directory.absolute(), *directory.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise TrainingError(
            f"run.dir: {directory} needs about {needed / 1e9:.3g} GB for checkpoints and the artifact, but its disk has "
            f"{free / 1e9:.3g} GB free; free some, choose another run.dir, or lower train.keep"
        )


def checkpoint_bytes(trainable: int, frozen: int, keep: int, ema: bool, validated: bool) -> int:
    """Estimate the bytes of a run's checkpoints and artifact, in float32.

    trainable, frozen: number of parameters
    keep: number of best checkpoints, which are written only if the run is validated
    ema: whether the last checkpoint also has the average of the weights

    While a checkpoint is replaced, both versions exist. The last one also has the two moments of the optimizer.
    """
    last = trainable * (4 if ema else 3)
    best = (keep + 1) * trainable if validated else 0
    return 4 * (2 * last + best + trainable + frozen)


def _check_column(data: "Data | WeightedConcat", name: str, key: str) -> None:
    try:
        data.column(name)
    except MmtuneError as e:
        raise RecipeError(f"{key}: {e}") from None


def _check_directions(key: str, data: "Data", pairs: Sequence[Pair]) -> None:
    """Check that some trained direction has a query with a relevant candidate, as the first validation needs."""
    if any(_has_relevant(data, a, b) for a, b in pairs):
        return
    wanted = ", ".join(dict.fromkeys(d for a, b in pairs for d in (direction(a, b), direction(b, a))))
    raise RecipeError(f"{key}: {data.spec} has no row for the trained directions {wanted}; it has {', '.join(data.modalities)}")


def _has_relevant(data: "Data", a: str, b: str) -> bool:
    if a not in data.modalities or b not in data.modalities:
        return False
    group = data.labels["group"]
    if a == b:
        grouped = data.present[a] & (group != 0)
        contents = np.unique(np.stack([group[grouped], data.labels[a][grouped]]), axis=1)
        return contents.shape[1] > len(np.unique(group[grouped]))
    if (data.present[a] & data.present[b]).any():
        return True
    of_a, of_b = group[data.present[a]], group[data.present[b]]
    return bool(np.isin(of_a[of_a != 0], of_b).any())


def _check_gate_direction(gate: Gate, known: Sequence[str]) -> None:
    if gate.task is not None:
        known = list(dict.fromkeys(m for name in known for m in name.split("->")))
    if gate.direction != "mean" and gate.direction not in known:
        raise RecipeError(
            f"gate.direction: there is no direction {gate.direction!r}{nearest(gate.direction, ['mean', *known])}"
        )


def _check_label(data: "Data", label: object) -> None:
    """Raise RecipeError if the column of the classes of a gate's task does not exist. A modality's texts may be the classes, too."""
    if isinstance(label, str) and label != "group" and label not in data.modalities:
        _check_column(data, label, "gate.task_options.label")


def _check_gate_data(gate: Gate, inputs: "TrainingInputs") -> None:
    """Raise an error for data that the gate's task cannot be evaluated by, so that it is not found after the training."""
    from mmtune.data.shards.dataset import open_data

    reference, label = gate.task_options.get("reference"), gate.task_options.get("label")
    if isinstance(reference, str):
        try:
            opened = open_data(reference)
        except DataError as e:
            raise DataError(f"gate.task_options.reference: {e}") from None
        _check_label(opened, label)
    if inputs.val is not None:
        _check_label(inputs.val, label)


def _check_mining(options: MiningOptions, inputs: "TrainingInputs") -> None:
    data = inputs.indexed
    names = [m for m in data.modalities if m in inputs.model.towers]
    for name in options.directions or ():
        known = [direction(a, b) for a in names for b in names]
        if name not in known:
            raise RecipeError(f"mining.directions: mining direction {name!r} does not exist{nearest(name, known)}")
    mined = [direction(a, b) for a, b in mined_directions(names, options.directions, inputs.pairs)]
    for number, own in enumerate(options.per_direction):
        if own.direction not in mined:
            key = f"mining.per_direction[{number}].direction"
            raise RecipeError(f"{key}: {own.direction!r} is not mined here{nearest(own.direction, mined)}")
    if options.siblings is not None:
        for column in options.siblings.same:
            _check_column(data, column, "mining.siblings.same")
        if options.siblings.other is not None:
            _check_column(data, options.siblings.other, "mining.siblings.other")
    if options.table is not None:
        try:
            check_fingerprint(options.table, inputs.base_fingerprint, options.allow_stale)
        except MmtuneError as e:
            raise type(e)(f"mining.table: {e}") from None


def teachers_of(term: AnyTerm) -> list[tuple[str, str | None]]:
    """The options of a term that name a teacher, with their values. A loss on class labels has none."""
    return [] if isinstance(term, ClassLabelTerm) else [("teacher", term.teacher), ("guide", term.guide)]


def teacher_modalities(recipe: Recipe, pairs: Sequence[Pair]) -> Mapping[str, dict[str, str]]:
    """Return {teacher: {modality that a term needs of it: the term's key}}."""
    needed: dict[str, dict[str, str]] = {}
    for number, term in enumerate(recipe.objective):
        for option, name in teachers_of(term):
            if name is not None:
                for m in {m for pair in term.pairs or pairs for m in pair if m in modalities.names()}:
                    needed.setdefault(name, {}).setdefault(m, f"objective[{number}].{option}")
    return needed
