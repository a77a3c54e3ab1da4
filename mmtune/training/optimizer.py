"""AdamW with weight decay on weight matrices only, and the learning rate schedule."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import nn

from mmtune.recipe.train_block import TrainConfig

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

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
)
"""Parts of the names of parameters of two and more axes that are no weight matrices: position tables, special tokens, factors."""


class ParameterGroup(TypedDict):
    """A parameter group of torch's optimizers. base_lr: the peak of the schedule, of which `lr` is the current share."""

    params: list[nn.Parameter]
    lr: float
    base_lr: float
    weight_decay: float


def parameter_groups(
    model: "Model", objective: nn.Module, config: TrainConfig, lr_shares: Mapping[int, float] | None = None
) -> list[ParameterGroup]:
    """Weight matrices decay; norms, biases (anything of fewer than two axes), positions and special tokens do not; logit scales
    have their own learning rate.

    lr_shares: id of a parameter -> share of the learning rate (layer decay). Frozen parameters are left out. The order is that
    of the names, so that a resumed optimizer assigns its state correctly.
    """
    scales = {id(p) for p in model.logit_scale_parameters()}
    lr_shares = lr_shares or {}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {(kind, 1.0): [] for kind in ("decay", "no_decay", "scale")}
    for name, p in [*model.named_parameters(), *objective.named_parameters()]:
        if not p.requires_grad:
            continue
        no_decay = p.ndim < 2 or any(part in name.lower() for part in NO_DECAY)
        kind = "scale" if id(p) in scales else "no_decay" if no_decay else "decay"
        groups.setdefault((kind, lr_shares.get(id(p), 1.0)), []).append(p)
    decay = {"decay": config.weight_decay, "no_decay": 0.0, "scale": 0.0}
    lr = {"decay": config.lr, "no_decay": config.lr, "scale": config.lr * config.scale_lr}
    return [
        {"params": parameters, "lr": lr[kind] * share, "base_lr": lr[kind] * share, "weight_decay": decay[kind]}
        for (kind, share), parameters in groups.items()
        if parameters
    ]


def build_optimizer(groups: list[ParameterGroup], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter, arXiv 1711.05101)."""
    return torch.optim.AdamW([{**g} for g in groups], lr=config.lr, betas=config.betas, eps=1e-8, fused=True)


def lr_factor(step: int, total_steps: int, config: TrainConfig) -> float:
    """The share of the peak learning rate at `step`: linear warm-up, then a cosine to zero (SGDR, arXiv 1608.03983) or
    constant."""
    warmup = round(config.warmup * total_steps) if config.warmup < 1 else int(config.warmup)
    warmup = min(warmup, max(total_steps - 1, 0))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
