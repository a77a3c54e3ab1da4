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
"""Parameters with two or more dimensions whose name contains one of these get no weight decay.

They are position embeddings, special tokens and scale factors, not weight matrices.
"""


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
    model: "Model", objective: nn.Module, config: TrainConfig, lr_shares: Mapping[int, float] | None = None
) -> list[ParameterGroup]:
    """Divide the trainable parameters into groups with and without weight decay, and the logit scales.

    Weight matrices decay. Norms, biases (all parameters with fewer than two dimensions), position embeddings and special tokens
    do not. Logit scales do not decay either, and have their own learning rate (`scale_lr` times `lr`). The order of groups and
    parameters depends only on names and order in the model, because torch's optimizer state refers to positions.

    lr_shares: {id of a parameter: factor on the learning rate}, for layer-wise decay
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
    """Factor on the peak learning rate at `step`: linear warm-up, then cosine decay to zero or constant.

    Cosine schedule: SGDR (arXiv 1608.03983). `config.warmup` below 1 is a share of all steps, otherwise a number of steps.
    """
    warmup = round(config.warmup * total_steps) if config.warmup < 1 else int(config.warmup)
    warmup = min(warmup, max(total_steps - 1, 0))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total_steps - warmup)))
