"""Linear probing, then fine-tuning (LP-FT, Kumar et al., arXiv 2202.10054): train the heads first, then heads and towers.

While a head is still random, its gradient would distort good features of the tower. The first stage is a separate run with the
same training loop. Its towers are frozen, so that it trains on their stored features; those of streamed rows are computed in each epoch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.run_block import RunConfig
from mmtune.recipe.tune_block import AnyTuning, FrozenTuning, HeadTuning

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

DIRECTORY = "head_first"
"""Subdirectory of the run directory for the first stage."""
METHODS_AFTER_HEAD = ("full", "partial", "lora", "qlora")
"""Values of `how` that can follow a first stage, because they train more than the head."""


def head_stage(recipe: Recipe, towers: Mapping[str, AnyTuning]) -> Recipe | None:
    """Return the recipe of the first stage, or None if no tower has `head_first`.

    It has the same data, pairs and objective. It has no augmentation (so that features can be stored), no mining, no
    interpolation, no forgetting budget, no trackers and no callbacks. Towers without `head_first` are frozen in it. Raises RecipeError if epochs or learning rates of the first
    stage differ between towers, or if a tower trains nothing but its head afterwards.
    """
    wanted = {m: t for m, t in towers.items() if t.head_first}
    if not wanted:
        return None
    for m, t in wanted.items():
        if t.how not in METHODS_AFTER_HEAD:
            raise RecipeError(
                f"tune.{m}.head_first: can only be used with how: {', '.join(METHODS_AFTER_HEAD)}; how: {t.how} trains no more "
                "than the head"
            )
    if len({(t.head_first, t.head_lr) for t in wanted.values()}) > 1:
        raise RecipeError(
            f"tune: head_first and head_lr differ between {', '.join(wanted)}; the first stage is one run, so use equal values"
        )
    first = next(iter(wanted.values()))
    train = {"epochs": first.head_first, "samples": None, "lr": first.head_lr or recipe.train.lr}
    return recipe.model_copy(
        update={
            "tune": {m: HeadTuning() if m in wanted else FrozenTuning() for m in towers},
            "train": recipe.train.model_copy(update=train),
            "augment": {},
            "interpolate": False,
            "mining": None,
            "gate": None,
            "retention": None,
            "run": RunConfig(dir=str(Path(recipe.run.dir) / DIRECTORY), trackers=[]),
        },
    )


def is_head_stage(recipe: Recipe) -> bool:
    """Whether `recipe` is one that `head_stage` returned."""
    return Path(recipe.run.dir).name == DIRECTORY


@torch.no_grad()
def copy_heads(model: "Model", trained: "Model") -> None:
    """Copy heads and logit scales from `trained`, the model of the first stage, to `model`, which has the same structure."""
    scales = {id(p) for p in model.logit_scale_parameters()}
    source = dict(trained.named_parameters())
    for name, p in model.named_parameters():
        if name.startswith("heads.") or id(p) in scales:
            p.copy_(source[name])
