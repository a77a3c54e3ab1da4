"""The directory of a run: claimed by one recipe, with records of the recipe and the machine."""

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
"""Keys that may differ in a resumed run: none of them changes its result."""
LIBRARIES = ("mmtune", "torch", "transformers", "open_clip_torch", "accelerate", "numpy", "pillow", "soundfile")


def claim_run_directory(directory: Path, recipe: Recipe, resume: bool) -> None:
    """Write the resolved recipe and the environment. Raises TrainingError for a directory that holds another run.

    A run that stopped before its first checkpoint is started anew: tables that it mined may be those of another model or of
    other data, and are deleted.
    """
    path = directory / "recipe.yaml"
    if path.exists() and (directory / "checkpoints").exists():
        if not resume:
            raise TrainingError(f"{directory} holds a run already: add --resume to go on with it, or choose another run.dir")
        import yaml

        # Parsing the old recipe gives keys that are newer than the run their defaults, and renamed keys their present names.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            old = Recipe.parse(yaml.safe_load(path.read_text()), str(path)).model_dump(mode="json")
        changed = [key for key in changed_keys(old, recipe.model_dump(mode="json")) if key not in MAY_CHANGE]
        if changed:
            raise TrainingError(f"{path}: the run to resume has another {changed[0]}; use the same recipe, or another run.dir")
    else:
        for stale in directory.glob("mining/round-*"):
            stale.unlink()
    write_text(path, recipe.to_yaml())
    write_json(directory / "environment.json", environment(recipe))


def environment(recipe: Recipe) -> JsonObject:
    """Versions, machine, precision and seed, for whoever wants to reproduce the numbers."""
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
