"""Parameter groups: what decays, what has its own learning rate; the schedule."""

import pytest
import torch
from torch import nn

from mmtune.recipe.train_block import TrainConfig
from mmtune.training.optimizer import lr_factor, parameter_groups

NO_DECAY = [
    "visual.positional_embedding",  # open_clip
    "trunk.pos_embed",  # timm
    "trunk.reg_token",
    "trunk.cls_token",
    "blocks.0.attn.rel_pos.rel_pos_bias",
    "embeddings.position_embeddings.weight",  # transformers
    "layers.0.attention.self.relative_position_bias_table",  # Swin, HTSAT
    "block.0.layer.0.SelfAttention.relative_attention_bias.weight",  # T5
    "encoder.layer.0.layer_scale.gamma",
    "own_scales.a~b",
]
DECAY = ["visual.conv1.weight", "blocks.0.mlp.fc1.weight", "token_embedding.weight", "heads.a.weight"]


class Named(nn.Module):
    """Matrices under these names, a norm, and a logit scale."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.norm = nn.LayerNorm(3)
        self.extra = {name: nn.Parameter(torch.zeros(2, 3)) for name in [*NO_DECAY, *DECAY]}

    def named_parameters(self, *args, **kwargs):
        yield from super().named_parameters(*args, **kwargs)
        yield from self.extra.items()

    def logit_scale_parameters(self):
        return [self.log_scale]


def test_position_tables_special_tokens_and_factors_do_not_decay():
    model, config = Named(), TrainConfig(weight_decay=0.1, lr=1e-3, scale_lr=0.5)
    names = {id(p): n for n, p in model.named_parameters()}
    groups = parameter_groups(model, nn.Module(), config)
    by_decay = {}
    for g in groups:
        by_decay.setdefault((g["weight_decay"], g["lr"]), set()).update(names[id(p)] for p in g["params"])
    assert by_decay == {
        (0.1, 1e-3): set(DECAY),
        (0.0, 1e-3): {*NO_DECAY, "norm.weight", "norm.bias"},
        (0.0, 5e-4): {"log_scale"},
    }


def test_schedule():
    config = TrainConfig(warmup=2)
    assert [lr_factor(s, 10, config) for s in (0, 1, 2)] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert lr_factor(6, 10, config) == pytest.approx(0.5) and lr_factor(10, 10, config) == pytest.approx(0.0)
    assert lr_factor(6, 10, TrainConfig(warmup=2, schedule="constant")) == 1.0
