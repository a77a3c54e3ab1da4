"""The directory of a run. It belongs to one recipe, and records the recipe and the environment."""

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.data.in_memory import FOLDER
from mmtune.errors import MmtuneError, TrainingError
from mmtune.model import artifact
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.recipe_file import changed_keys
from mmtune.runtime.devices import has_mps
from mmtune.runtime.files import read_json, refuse_url, write_json, write_text
from mmtune.training.checkpoint import STATE_FILE
from mmtune.training.precision import resolve_precision

ENVIRONMENT = "environment.json"
MAY_CHANGE = (
    "run.dir",
    "run.trackers",
    "run.project",
    "run.name",
    "run.pictures",
    "run.callbacks",
    "data.workers",
    "data.worker_kind",
    "data.cache",
    "runtime.threads",
    "train.shard",
    "train.cpu_kernels",
    "train.checkpoint_every",
    "train.keep",
    "gate",
)
"""Recipe keys, or blocks of them, that may change when a run is resumed, because they do not affect its result (`runtime.threads`: but
for the last bit)."""
OF_VALIDATION = (
    "train.metric",
    "train.patience",
    "train.validate_every",
    "data.val",
    "data.retention",
    "data.val_read",
    "data.allow_trained",
)
"""Recipe keys that may change as long as the run has not validated: nothing that it has done so far depends on them."""
EPOCHS = "train.epochs"
"""The recipe key that may grow when a run is resumed: that extends the run (`extend_run`)."""
LIBRARIES = ("mmtune", "torch", "transformers", "open_clip_torch", "accelerate", "numpy", "pillow", "soundfile")


def claim_run_directory(directory: Path, recipe: Recipe, resume: bool) -> None:
    """Write the resolved recipe and the environment to the directory of the run.

    A run may be resumed with more epochs than before, which extends it.

    Raises TrainingError if the directory holds another run, or holds this run and `resume` is False, or holds a recipe.yaml of the
    user with other values. A recipe.yaml of the user with the same values is left as it is. A run without a checkpoint
    starts again from the beginning. In that case tables of mined negatives are deleted, because the model or the data may
    have changed.
    """
    refuse_url(directory, "run.dir")
    path = directory / "recipe.yaml"
    artifact.refuse_other_files(directory / "artifact")
    if path.exists() and (directory / "checkpoints").exists():
        if not resume:
            raise TrainingError(f"{directory} already holds a run: add --resume to continue it, or choose another run.dir")
        if changed := _changes(path, recipe):
            what, same = f"another value of {changed[0]}", "recipe"
            if changed[0] in ("data.train", "data.val") and f"/{FOLDER}/" in str(recipe.data.model_dump()[changed[0][5:]]):
                what, same = f"other rows in memory as {changed[0]}", "rows"
            why = _why_not_extended(path, recipe) if changed == [EPOCHS] else ""
            raise TrainingError(f"{path}: the run to resume has {what}; use the same {same}, or another run.dir{why}")
    _write_recipe(path, recipe)
    if not (directory / "checkpoints").exists():
        for stale in directory.glob("mining/round-*"):
            stale.unlink()


def _write_recipe(path: Path, recipe: Recipe) -> None:
    """Write the resolved recipe to `path`, and the environment beside it. TrainingError if `path` is another recipe, which no run
    wrote."""
    resolved = recipe.to_yaml()
    if not path.exists() or _is_own(path):
        write_text(path, resolved)
        write_json(path.with_name(ENVIRONMENT), environment(recipe) | {"recipe_sha256": _sha256(resolved.encode())})
        return
    try:
        differs = [f"another {key}" for key in _changes(path, recipe)]
    except MmtuneError:
        differs = ["it is no valid recipe"]
    if differs:
        raise TrainingError(
            f"{path}: a recipe of your own, which the run's resolved recipe would replace ({differs[0]}); choose another run.dir"
        )
    write_json(path.with_name(ENVIRONMENT), environment(recipe) | {"recipe_sha256": ""})


def _is_own(path: Path) -> bool:
    """Whether a RUN's recipe.yaml is what a run wrote: the environment.json beside it has its hash (since hashes are kept)."""
    environment_file = path.with_name(ENVIRONMENT)
    if not environment_file.exists():
        return False
    return read_json(environment_file).get("recipe_sha256") in (None, _sha256(path.read_bytes()))


def _changes(path: Path, recipe: Recipe) -> list[str]:
    """The keys that matter in which the recipe at `path` is another one. Parsing it gives keys that are newer than it their defaults, and renamed
    keys their present names."""
    import yaml

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise TrainingError(f"{path}: {' '.join(str(e).split())}") from None
        old = Recipe.parse(document, str(path))
    free = (*MAY_CHANGE, EPOCHS) if recipe.train.epochs > old.train.epochs and _can_extend(recipe) else MAY_CHANGE
    state = _last_state(path.parent)
    if not state.get("best"):
        free = (*free, *OF_VALIDATION)
    elif not state.get("finished") and _is_longer(recipe.train.patience, old.train.patience):
        free = (*free, "train.patience")
    changed = changed_keys(old.model_dump(mode="json"), recipe.model_dump(mode="json"))
    return [key for key in changed if not any(key == f or key.startswith(f"{f}.") for f in free)]


def _last_state(directory: Path) -> JsonObject:
    """The trainer state of the run's last checkpoint; {} if there is none."""
    path = directory / "checkpoints" / "last" / STATE_FILE
    return read_json(path) if path.is_file() else {}


def _is_longer(patience: int | None, before: int | None) -> bool:
    """Whether a run that `before` has not stopped yet cannot have been stopped by `patience` either."""
    return patience is None or (before is not None and patience >= before)


def _can_extend(recipe: Recipe) -> bool:
    """Whether a run may get more epochs. Mining rounds are spread over the epochs, so with them it may not."""
    return recipe.mining is None or recipe.mining.table is not None


def _why_not_extended(path: Path, recipe: Recipe) -> str:
    if not _can_extend(recipe):
        return f" (mining rounds are spread over the epochs of a run; train a new run with model={path.parent / 'artifact'} instead)"
    return " (a run can be extended, not shortened)"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def environment(recipe: Recipe) -> JsonObject:
    """Versions, machine, precision and seed: what is needed to reproduce the results."""
    from importlib.metadata import version

    import torch

    processor = platform.processor() or platform.machine()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor} {'MPS' if has_mps() else ''}".strip()
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
