"""AdamW with decay only where it belongs, and the learning rate's course."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from mmtune.recipe.train_block import TrainConfig

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

NO_DECAY = (
    "position_embedding",
    "positional_embedding",
    "class_embedding",
    "cls_token",
    "logit_scale",
    "logit_bias",
    "own_scales",
)


def parameter_groups(
    model: "Model", objective: nn.Module, config: TrainConfig, rates: Mapping[int, float] | None = None
) -> list[dict[str, object]]:
    """Weights decay; norms, biases, positions (anything of fewer than two axes) do not; temperatures have their own lr.

    rates: id of a parameter -> share of the learning rate (layer-wise decay). Frozen parameters are left out.
    Names decide the order, so that a resumed optimizer finds its state.
    """
    scales = {id(s.log) for s in model._scales.values()} | {id(s.bias) for s in model._scales.values() if s.bias is not None}
    rates = rates or {}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {(kind, 1.0): [] for kind in ("decay", "plain", "scale")}
    for name, p in [*model.named_parameters(), *objective.named_parameters()]:
        if not p.requires_grad:
            continue
        kind = "scale" if id(p) in scales else "plain" if p.ndim < 2 or any(n in name for n in NO_DECAY) else "decay"
        groups.setdefault((kind, rates.get(id(p), 1.0)), []).append(p)
    decay = {"decay": config.weight_decay, "plain": 0.0, "scale": 0.0}
    rate = {"decay": config.lr, "plain": config.lr, "scale": config.lr * config.scale_lr}
    return [
        {"params": ps, "lr": rate[k] * share, "base_lr": rate[k] * share, "weight_decay": decay[k]}
        for (k, share), ps in groups.items()
        if ps
    ]


def build_optimizer(groups: list[dict[str, object]], config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter, arXiv 1711.05101)."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=1e-8, fused=True)


def lr_factor(step: int, total: int, config: TrainConfig) -> float:
    """Share of the full rate at `step` of `total`: linear warm-up, then a cosine to zero (SGDR, arXiv 1608.03983) or flat."""
    warmup = round(config.warmup * total) if config.warmup < 1 else int(config.warmup)
    warmup = min(warmup, max(total - 1, 0))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
