"""Open what a recipe trains: data, model, pairs of modalities, and the loader. `mmtune train` and `mmtune bench` use it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import Pair, Preprocess
from mmtune.data.loader.loader import Loader
from mmtune.data.loader.mixup import make_augmentation
from mmtune.data.loader.row_classes import RowClasses
from mmtune.data.loader.stream_loader import StreamLoader
from mmtune.data.shards.dataset import Data, open_data
from mmtune.data.shards.shard_lru import ShardCache
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.data.skip_bad import without_undecodable
from mmtune.embedding.streamed_rows import open_streamed
from mmtune.errors import RecipeError
from mmtune.model import artifact
from mmtune.model.prompts import with_training_prompts
from mmtune.recipe.objective_block import compares_only_views, viewed_modalities
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.devices import local_device
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.worker_pool import count_workers
from mmtune.training.class_labels import AnyClassLabels, StreamedClassLabels
from mmtune.training.stream_limits import FIX, VALIDATION, refuse_random_access, streams_validation
from mmtune.training.validation_rows import StreamedRowsCheck, check_validation_rows

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.tuning.tune import TunedModel


@dataclass
class TrainingInputs:
    """The inputs of a training run, opened.

    data: the training sets
    val, retention: the validation and retention data, or None
    model: the base model, with the recipe's prompts and window pooling
    base_fingerprint: fingerprint of the model as it was loaded
    pairs: the pairs of modalities that are trained
    trained: the modalities in `pairs`
    usable: bool [N], True for rows of `data` that have both sides of at least one pair
    """

    data: WeightedConcat | StreamedSets
    val: Data | None
    retention: Data | None
    model: "Model"
    base_fingerprint: str
    pairs: list[Pair]
    trained: list[str]
    usable: np.ndarray

    @property
    def is_streamed(self) -> bool:
        """Whether the training data are streamed."""
        return isinstance(self.data, StreamedSets)

    @property
    def indexed(self) -> WeightedConcat:
        """`data` with random access. Raises RecipeError if they are streamed."""
        if isinstance(self.data, StreamedSets):
            raise RecipeError(f"data.read: {FIX}")
        return self.data

    def varying(self, recipe: Recipe) -> list[str]:
        """The modalities of which no features are stored: their inputs differ between epochs or are not known beforehand, or a
        cross-encoder needs more than the features."""
        return self.trained if self.is_streamed or recipe.cross_encoder else list(recipe.augment)


def open_inputs(recipe: Recipe) -> TrainingInputs:
    """Open the data and the model of a recipe, and choose the pairs of modalities.

    Raises DataError or ModelError if data or model cannot be opened. Raises RecipeError if model and data do not have the
    modalities of a pair, if there are fewer than two usable rows, or if rows of val or retention are
    also training rows.
    """
    data = _open_training_sets(recipe)
    val, retention = (_open_validation(recipe, key) for key in VALIDATION)
    model = artifact.load(recipe.model, cpu_kernels=recipe.train.cpu_kernels)
    base_fingerprint = model.fingerprint
    if recipe.prompts is not None:
        model.set_prompts(recipe.prompts)
    if recipe.window_pooling is not None:
        model.set_window_pooling(recipe.window_pooling)
    views = viewed_modalities(recipe.objective)
    _check_viewed(views, recipe, model, data)
    if recipe.pairs is None and compares_only_views(recipe.objective):  # nothing but two views of an item is compared
        pairs = [(m, m) for m in views]
    else:
        pairs = choose_pairs(recipe.pairs, model, data)
        model.ensure_logit_scales(pairs)
    trained = sorted({m for pair in pairs for m in pair} | {*views}, key=modalities.names().index)
    usable = np.any([data.present[a] & data.present[b] for a, b in [*pairs, *((m, m) for m in views)]], axis=0)
    if usable.sum() < (1 if isinstance(data, StreamedSets) else 2):
        names = ", ".join(f"[{a}, {b}]" for a, b in pairs)
        raise RecipeError(
            f"pairs: {data.spec} has {int(usable.sum())} rows with both sides of {names}; training needs at least 2"
        )
    inputs = TrainingInputs(data, val, retention, model, base_fingerprint, pairs, trained, usable)
    check_validation_rows(inputs, recipe.data.allow_trained)
    return inputs


def _open_training_sets(recipe: Recipe) -> WeightedConcat | StreamedSets:
    sets = recipe.data.training_sets
    if recipe.data.read == "stream":
        refuse_random_access(recipe)
        return StreamedSets([s.path for s in sets], [s.weight for s in sets], ShardCache(recipe.data.cache_size_bytes))
    return WeightedConcat([_open(s.path, recipe) for s in sets], [s.weight for s in sets])


def _open_validation(recipe: Recipe, key: str) -> Data | None:
    """Open `data.val` or `data.retention`; those that are streamed are read once, to list their rows."""
    spec = getattr(recipe.data, key)
    if spec is None:
        return None
    if not streams_validation(recipe, key):
        return _open(spec, recipe)
    sets = StreamedSets([spec], [1.0], ShardCache(recipe.data.cache_size_bytes))
    return open_streamed(sets, skip_bad=recipe.data.skip_bad, checked=sets.modalities)


def _open(spec: str, recipe: Recipe) -> Data:
    """Open DATA. If the recipe sets data.skip_bad, values that cannot be decoded are left out."""
    return without_undecodable(open_data(spec)) if recipe.data.skip_bad else open_data(spec)


def _check_viewed(views: Mapping[str, str], recipe: Recipe, model: "Model", data: WeightedConcat | StreamedSets) -> None:
    """Raise RecipeError for a modality of `views` that model or data lack, or that has no augmentation to make views with."""
    for m, how in views.items():
        modalities.get(m)
        if m not in model.towers or m not in data.modalities:
            raise RecipeError(
                f"objective.views: {m} must be in model and data, but the model has {list(model.towers)} and the data have "
                f"{data.modalities}"
            )
        if how == "augmentation" and not (m in recipe.augment and recipe.augment[m].active):
            raise RecipeError(f"objective.views: two views of {m} by augmentation need an augmentation; set augment.{m}")


def choose_pairs(wanted: Sequence[Pair] | None, model: "Model", data: WeightedConcat | StreamedSets) -> list[Pair]:
    """Return the recipe's pairs or, if it has none, every pair that model and data share and that occurs in some row.

    Raises RecipeError if a pair cannot be trained.
    """
    both = [m for m in data.modalities if m in model.towers]
    if wanted is None:
        pairs = [(a, b) for i, a in enumerate(both) for b in both[i + 1 :] if (data.present[a] & data.present[b]).any()]
        if not pairs:
            raise RecipeError(
                f"pairs: no row has two modalities of the model; the model has {list(model.towers)}, {data.spec} has "
                f"{data.modalities}"
            )
        return pairs
    for pair in wanted:
        for m in pair:
            modalities.get(m)
            if m not in both:
                raise RecipeError(
                    f"pairs: {list(pair)}: {m} must be in model and data, but the model has {list(model.towers)} and the data "
                    f"have {data.modalities}"
                )
    return list(wanted)


def build_loader(
    recipe: Recipe,
    inputs: TrainingInputs,
    tuned: "TunedModel | None" = None,
    *,
    columns: dict[str, str] | None = None,
    cache_bytes: int | None = None,
    processes: Processes = SINGLE_PROCESS,
    extended: Callable[[str, Preprocess], Preprocess] | None = None,
    class_labels: Mapping[str, AnyClassLabels] | None = None,
) -> Loader | StreamLoader:
    """Create the loader of the training rows, with the recipe's augmentation and the model's preprocessing and prompts.

    Raises RecipeError if the recipe augments a modality that is not trained.

    tuned: the model after `tune`. If it stores features of frozen towers, the loader uses them
    columns: {numeric metadata column that batches contain: the recipe key that names it}
    cache_bytes: size of the loader's cache, instead of data.cache
    extended: changes the preprocessing of a modality, e.g. for what a cross-encoder needs beside the towers' inputs
    class_labels: the classes of losses on class labels; batches of streamed rows have the labels of their classes
    """
    for m in recipe.augment:
        if m not in inputs.trained:
            raise RecipeError(f"augment.{m}: {m} is not trained here; the pairs train {', '.join(inputs.trained)}")
    model = inputs.model
    preprocess = {m: with_training_prompts(model.towers[m].preprocess, model.prompts, m) for m in inputs.trained}
    if extended is not None:
        preprocess = {m: extended(m, p) for m, p in preprocess.items()}
    data, kind = inputs.data, recipe.data.worker_kind
    # all ranks prepare equally many batches ahead, because streamed batches are exchanged when they are drawn
    workers = processes.broadcast(count_workers(recipe.data.workers, local_device().type))
    augment = {m: make_augmentation(options, data) for m, options in recipe.augment.items() if options.active}
    if isinstance(data, StreamedSets):
        known = [labels.known for labels in (class_labels or {}).values() if isinstance(labels, StreamedClassLabels)]
        return StreamLoader(
            data,
            preprocess,
            augment,
            pairs=inputs.pairs,
            batch_size=recipe.train.batch_size,
            seed=recipe.train.seed,
            workers=workers,
            worker_kind=kind,
            shuffle_buffer=recipe.data.shuffle_buffer,
            lanes=recipe.data.lanes,
            columns=columns,
            processes=processes,
            never_empty=recipe.train.shard,
            skip_damaged=recipe.data.skip_bad,
            check=StreamedRowsCheck(inputs, recipe.data.allow_trained) if inputs.val or inputs.retention else None,
            classes=RowClasses(known, data, recipe.data.skip_bad) if known else None,
        )
    return Loader(
        data,
        preprocess | (tuned.feature_preprocess if tuned else {}),
        augment,
        seed=recipe.train.seed,
        workers=workers,
        worker_kind=kind,
        cache_bytes=recipe.data.cache_bytes if cache_bytes is None else cache_bytes,
        columns=columns or {},
        processes=processes,
        prepared=tuned.features.items if tuned and tuned.features else None,
        never_empty=recipe.train.shard,
        views=viewed_modalities(recipe.objective),
    )
