"""What streamed training data cannot be used for, because it needs any row at any time: refused before the first step."""

from mmtune.data.shards.streamed_sets import StreamedSets, is_streamed
from mmtune.errors import RecipeError
from mmtune.recipe.objective_block import viewed_modalities
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.train_block import TrainConfig

VALIDATION = ("val", "retention")
"""Keys of the recipe block `data:` that name validation data."""
FIX = "needs any row at any time, which data.read: stream does not give; set data.read=index, or remove it"


def refuse_random_access(recipe: Recipe) -> None:
    """Raise RecipeError, which names the key, if a recipe with `data.read: stream` uses something that needs random access."""
    if recipe.mining is not None:
        raise RecipeError(f"mining: {FIX}")
    if recipe.data.negatives_files:
        raise RecipeError(f"data.negatives: {FIX}")
    if views := viewed_modalities(recipe.objective):
        raise RecipeError(f"objective: two views of {', '.join(views)}: {FIX}")
    if recipe.teachers:
        name = next(iter(recipe.teachers))
        raise RecipeError(f"teachers.{name}: the cache of its outputs {FIX}")
    if recipe.data.batches.plan != "random":
        raise RecipeError(
            f"data.batches: {recipe.data.batches.plan} needs any row at any time, which data.read: stream does not give; set "
            "data.batches=random, or data.read=index"
        )
    for m, options in recipe.augment.items():
        if options.mixup:
            raise RecipeError(f"augment.{m}.mixup: {FIX}")


def refuse_unknown_length(sets: StreamedSets, config: TrainConfig) -> None:
    """Raise RecipeError if neither the recipe nor index.json says how long a run on streamed data is."""
    if config.samples is None and sets.rows is None:
        raise RecipeError(
            f"train.samples: {sets.spec}: the number of rows of streamed shards without index.json is unknown; set "
            "the number of pairs to train on, e.g. train.samples=10M"
        )


def refuse_unknown_head_stage(sets: StreamedSets, recipe: Recipe) -> None:
    """Raise RecipeError, which names the key, if a first stage of the heads (`head_first`, in epochs) has no known length."""
    tuning = recipe.tune if isinstance(recipe.tune, dict) else {"": recipe.tune}
    for m, tune in tuning.items():
        if getattr(tune, "head_first", None) and sets.rows is None:
            raise RecipeError(
                f"tune{f'.{m}' if m else ''}.head_first: counts epochs, but the number of rows of {sets.spec} is unknown, because it has no "
                "index.json; pack it, or train the heads in a run of their own (tune: head, train.samples) and go on from its artifact"
            )


def streams_validation(recipe: Recipe, key: str) -> bool:
    """Whether the data of `key`, one of VALIDATION, are streamed. Raises RecipeError, which names a key, if something needs their values."""
    spec = getattr(recipe.data, key)
    if spec is None or not is_streamed(spec, recipe.data.val_read):
        return False
    name = f"data.val_read: {recipe.data.val_read}" if recipe.data.val_read else f"data.{key}: {spec}"
    fix = "name shards that allow random access" if recipe.data.val_read is None else "leave it out"
    if recipe.data.read != "stream":
        raise RecipeError(f"{name}: data.{key} can only be streamed if the training data are; set data.read=stream, or {fix}")
    needs = {
        "cross_encoder": recipe.cross_encoder is not None,
        "run.pictures": key == "val" and recipe.run.pictures > 0,
        "retention.weight": key == "retention"
        and bool(recipe.retention and recipe.retention.weight and not recipe.retention.preserve),
    }
    for wanted, is_set in needs.items():
        if is_set:
            raise RecipeError(f"{wanted}: needs single values of data.{key}, which streaming does not give ({name}); {fix}")
    return True
