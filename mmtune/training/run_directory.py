"""The directory of a run. It belongs to one recipe, and records the recipe and the environment."""

import os
import platform
import sys
import warnings
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.errors import TrainingError
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.recipe_file import changed_keys
from mmtune.runtime.files import write_json, write_text
from mmtune.training.precision import resolve_precision

MAY_CHANGE = ("run.dir", "data.workers", "data.cache", "train.shard", "train.cpu_kernels")
"""Recipe keys that may change when a run is resumed, because they do not affect its result."""
LIBRARIES = ("mmtune", "torch", "transformers", "open_clip_torch", "accelerate", "numpy", "pillow", "soundfile")


def claim_run_directory(directory: Path, recipe: Recipe, resume: bool) -> None:
    """Write the resolved recipe and the environment to the directory of the run.

    Raises TrainingError if the directory holds another run, or holds this run and `resume` is False. A run without a checkpoint
    starts again from the beginning. In that case tables of mined negatives are deleted, because the model or the data may
    have changed.
    """
    path = directory / "recipe.yaml"
    if path.exists() and (directory / "checkpoints").exists():
        if not resume:
            raise TrainingError(f"{directory} already holds a run: add --resume to continue it, or choose another run.dir")
        import yaml

        # Parse the old recipe instead of comparing text: parsing adds defaults for keys that are newer than the run, and
        # translates keys that were renamed.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            old = Recipe.parse(yaml.safe_load(path.read_text()), str(path)).model_dump(mode="json")
        changed = [key for key in changed_keys(old, recipe.model_dump(mode="json")) if key not in MAY_CHANGE]
        if changed:
            raise TrainingError(
                f"{path}: the run to resume has another value of {changed[0]}; use the same recipe, or another run.dir"
            )
    else:
        for stale in directory.glob("mining/round-*"):
            stale.unlink()
    write_text(path, recipe.to_yaml())
    write_json(directory / "environment.json", environment(recipe))


def environment(recipe: Recipe) -> JsonObject:
    """Versions, machine, precision and seed: what is needed to reproduce the results."""
    from importlib.metadata import version

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "versions": {n: version(n) for n in LIBRARIES} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(recipe.train.precision),
        "seed": recipe.train.seed,
        "command": sys.argv,
    }
