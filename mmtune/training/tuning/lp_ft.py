"""Linear probing before fine-tuning (LP-FT, Kumar et al., arXiv 2202.10054): heads are trained first, then the towers too.

The gradient of a head that is still random distorts good features. The first stage is a run of its own, on stored features of
frozen towers, by the same loop.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.train_block import RunConfig
from mmtune.recipe.tune_block import AnyTuning, FrozenTuning, HeadTuning

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

DIRECTORY = "head_first"
"""Subdirectory of the run that holds the first stage."""
METHODS_AFTER_HEAD = ("full", "partial", "lora", "qlora")


def head_stage(recipe: Recipe, towers: Mapping[str, AnyTuning]) -> Recipe | None:
    """The recipe of the first stage, or None where no tower has a `head_first`.

    It has the same data, pairs and objective, no augmentation (so that features can be stored), no mining, no interpolation;
    towers without a `head_first` are frozen in it. Raises RecipeError for epochs or learning rates that differ between towers,
    and for a tower that learns nothing but the head afterwards.
    """
    wanted = {m: t for m, t in towers.items() if t.head_first}
    if not wanted:
        return None
    for m, t in wanted.items():
        if t.how not in METHODS_AFTER_HEAD:
            raise RecipeError(
                f"tune.{m}.head_first: goes with {', '.join(METHODS_AFTER_HEAD)}; how: {t.how} learns nothing after the head"
            )
    if len({(t.head_first, t.head_lr) for t in wanted.values()}) > 1:
        raise RecipeError(f"tune: head_first and head_lr differ between {', '.join(wanted)}; one first stage serves them all")
    first = next(iter(wanted.values()))
    train = {"epochs": first.head_first, "lr": first.head_lr or recipe.train.lr}
    return recipe.model_copy(
        update={
            "tune": {m: HeadTuning() if m in wanted else FrozenTuning() for m in towers},
            "train": recipe.train.model_copy(update=train),
            "augment": {},
            "interpolate": False,
            "mining": None,
            "gate": None,
            "run": RunConfig(dir=str(Path(recipe.run.dir) / DIRECTORY)),
        },
    )


@torch.no_grad()
def copy_heads(model: "Model", trained: "Model") -> None:
    """Copy the heads and logit scales that the first stage has `trained` into `model`, which has the same towers and heads."""
    scales = {id(p) for p in model.logit_scale_parameters()}
    source = dict(trained.named_parameters())
    for name, p in model.named_parameters():
        if name.startswith("heads.") or id(p) in scales:
            p.copy_(source[name])
