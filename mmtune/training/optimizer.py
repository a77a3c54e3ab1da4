"""Parameter groups with learning rate and weight decay, the optimizer of a library, and the learning rate schedule."""

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from mmtune.errors import MissingExtra, RecipeError
from mmtune.recipe.optimizer_block import BUILT_IN, TABLE, AdamWOptimizer, CustomOptimizer
from mmtune.recipe.train_block import TrainConfig
from mmtune.runtime.plugins import nearest, resolve

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model
    from mmtune.training.tuning.tower_rates import TowerRates

NO_DECAY = (
    "position_embed",
    "positional_embed",
    "pos_embed",
    "pos_emb",
    "relative_position",
    "relative_attention_bias",
    "rel_pos",
    "class_embedding",
    "class_token",
    "cls_token",
    "dist_token",
    "reg_token",
    "register_token",
    "mask_token",
    "layer_scale",
    "layerscale",
    "logit_scale",
    "logit_bias",
    "own_scales",
    "class_losses",
)
"""Parameters with two or more dimensions whose name contains one of these get no weight decay.

They are position embeddings, special tokens, scale factors and class proxies, not weight matrices.
"""


KINDS = ("decay", "no_decay", "scale")
"""Kinds of parameters that have groups of their own."""
FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Types of devices for which torch has a fused AdamW."""
FIXED_ARGUMENTS: Mapping[str, Mapping[str, object]] = {
    "adafactor": {"relative_step": False, "warmup_init": False},  # `train` has the learning rate and the warm-up
    "lamb": {"max_grad_norm": None},  # `train.clip_norm` clips
}
"""{optimizer: arguments that no recipe changes}."""
EXTRAS = {"adamw_8bit": ("bitsandbytes", "optimizers")}
"""{optimizer: (its library, the extra that installs it)}."""


class ParameterGroup(TypedDict):
    """A parameter group as torch's optimizers take it.

    lr: the current learning rate
    base_lr: the peak learning rate of the schedule
    """

    params: list[nn.Parameter]
    lr: float
    base_lr: float
    weight_decay: float


def parameter_groups(
    model: "Model",
    objective: nn.Module,
    config: TrainConfig,
    lr_shares: Mapping[int, float] | None = None,
    rates: "TowerRates | None" = None,
) -> list[ParameterGroup]:
    """Divide the trainable parameters into groups with and without weight decay, and the logit scales.

    Weight matrices decay. Norms, biases (all parameters with fewer than two dimensions), position embeddings and special tokens
    do not. Logit scales do not decay either, and have their own learning rate (`scale_lr` times `lr`). The order of groups and
    parameters depends only on names and order in the model, because torch's optimizer state refers to positions.

    lr_shares: {id of a parameter: factor on the learning rate}, for layer-wise decay
    rates: learning rates and weight decays of single towers, which replace those of `config`
    """
    scales = {id(p) for p in model.logit_scale_parameters()}
    lr_shares = lr_shares or {}
    tower_lr, tower_decay = (rates.lr, rates.weight_decay) if rates else ({}, {})
    Key = tuple[str, float, float, float]  # (kind, factor, peak learning rate, weight decay)
    groups: dict[Key, list[nn.Parameter]] = {(kind, 1.0, config.lr, config.weight_decay): [] for kind in KINDS}
    for name, p in [*model.named_parameters(), *objective.named_parameters()]:
        if not p.requires_grad:
            continue
        no_decay = p.ndim < 2 or any(part in name.lower() for part in NO_DECAY)
        kind = "scale" if id(p) in scales else "no_decay" if no_decay else "decay"
        lr, weight_decay = tower_lr.get(id(p), config.lr), tower_decay.get(id(p), config.weight_decay)
        groups.setdefault((kind, lr_shares.get(id(p), 1.0), lr, weight_decay), []).append(p)
    made: list[ParameterGroup] = []
    for (kind, share, lr, weight_decay), parameters in groups.items():
        if parameters:
            peak = lr * (config.scale_lr if kind == "scale" else 1.0) * share
            decay = weight_decay if kind == "decay" else 0.0
            made.append({"params": parameters, "lr": peak, "base_lr": peak, "weight_decay": decay})
    return made


def build_optimizer(groups: Sequence[ParameterGroup], config: TrainConfig) -> torch.optim.Optimizer:
    """Create the optimizer `train.optimizer`, of a library.

    Raises MissingExtra if its library is not installed, and RecipeError for options that its class does not have.
    """
    block = config.optimizer
    if block.name in EXTRAS and block.name in BUILT_IN:
        _require(*EXTRAS[block.name], block.name)
    kind = resolve(TABLE, block.name, "optimizer", key="train.optimizer")
    arguments: dict[str, object] = {"lr": config.lr, **block.arguments, **FIXED_ARGUMENTS.get(block.name, {})}
    if isinstance(block, AdamWOptimizer):
        arguments["fused"] = all(p.device.type in FUSED_DEVICES for g in groups for p in g["params"])
    known = inspect.signature(kind).parameters
    if block.has_betas and "betas" in known:
        arguments["betas"] = config.betas
    if isinstance(block, CustomOptimizer):
        for name in block.arguments:
            if name not in known:
                raise RecipeError(f"train.optimizer.{name}: {block.name} has no such option{nearest(name, list(known)[1:])}")
    try:
        optimizer = kind([{**g} for g in groups], **arguments)
    except (TypeError, ValueError) as e:
        raise RecipeError(f"train.optimizer: {block.name}: {e}") from None
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RecipeError(f"train.optimizer: {block.name} is a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    return optimizer


def _require(library: str, extra: str, name: str) -> None:
    import importlib.util

    if importlib.util.find_spec(library) is None:
        raise MissingExtra(f'train.optimizer: {name} needs {library}: pip install "mmtune[{extra}]" (or optimizer: adamw)')


def number_of_steps(length: float, total_steps: int) -> int:
    """A length in steps: a fraction of all steps if it is below 1, else the number of steps itself."""
    return round(length * total_steps) if length < 1 else int(length)


def decay_start(total_steps: int, config: TrainConfig) -> int:
    """The first step of the decay of the schedule `wsd`."""
    return max(total_steps - max(number_of_steps(config.decay, total_steps), 1), 0)


def lr_factor(step: float, total_steps: int, config: TrainConfig) -> float:
    """Factor on the peak learning rate at `step`: linear warm-up, then the schedule of the recipe.

    cosine: SGDR (arXiv 1608.03983); wsd: warm-up, stable, decay (arXiv 2404.06395; the shape 1-sqrt is from arXiv 2405.18392). The
    decays end at `config.min_lr`. `config.warmup` below 1 is a share of all steps, otherwise a number of steps.
    """
    warmup = min(number_of_steps(config.warmup, total_steps), max(total_steps - 1, 0))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = max(decay_start(total_steps, config), warmup) if config.schedule == "wsd" else warmup
    if config.schedule == "constant" or step < start:
        return 1.0
    progress = (step - start) / max(1, total_steps - start)
    shape = config.decay_shape if config.schedule == "wsd" else config.schedule
    if shape == "cosine":
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = 1 - progress if shape == "linear" else 1 - math.sqrt(progress)
    return config.min_lr + (1 - config.min_lr) * share
