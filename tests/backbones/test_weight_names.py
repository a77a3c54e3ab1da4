"""Names of weights do not depend on the version of transformers."""

import pytest
import torch

from mmtune.backbones.weight_names import named_by_key, renamed, weight_keys

SPELLINGS = [  # (transformers 5.3, transformers 5.24)
    ("parts.0.encoder.layer.1.attention.attention.query.weight", "parts.0.layers.1.attention.q_proj.weight"),
    ("parts.0.encoder.layer.1.attention.output.dense.bias", "parts.0.layers.1.attention.o_proj.bias"),
    ("parts.0.encoder.layer.1.intermediate.dense.bias", "parts.0.layers.1.mlp.fc1.bias"),
    ("parts.0.encoder.layer.1.output.dense.weight", "parts.0.layers.1.mlp.fc2.weight"),
    ("parts.0.encoder.layer.11.attention.attention.key.bias", "parts.0.encoder.layer.11.attention.k_proj.bias"),  # DINOv2
    ("parts.0.layer.2.norm1.weight", "parts.0.model.layer.2.norm1.weight"),  # DINOv3
    (
        "parts.0.encoder.layers.0.blocks.1.attention.self.relative_position_bias_table",  # Swin
        "parts.0.encoder.layers.0.blocks.1.attention.relative_position_bias.relative_position_bias_table",
    ),
    (
        "parts.0.text_model.roberta.encoder.layer.0.output.dense.bias",
        "parts.0.text_model.roberta.encoder.layers.0.output.dense.bias",
    ),
    ("parts.1.encoder.layer.0.mlp.weights_out.weight", "parts.1.encoder.layer.0.mlp.down_proj.weight"),  # SwiGLU of DINOv2
]


@pytest.mark.parametrize("earlier, now", SPELLINGS)
def test_two_spellings_of_one_name(earlier, now):
    assert weight_keys(earlier) == weight_keys(now) == weight_keys(weight_keys(now)[0])


def test_other_names_stay_apart():
    names = ["layers.0.a", "layers.1.a", "decoder.layers.0.a", "blocks.0.attention.q", "attention.output.dense.weight"]
    names += [
        "encoder.layer.0.attention.self.value.bias",
        "encoder.layer.0.output.LayerNorm.bias",
        "crossattention.output.dense.bias",
    ]
    assert len({weight_keys(n) for n in names}) == len(names)
    assert weight_keys("heads.image.weight") == ("heads.image.weight",)


def test_fused_weights_are_those_of_their_parts():
    gate, up = torch.arange(6.0).view(3, 2), torch.arange(6.0, 12).view(3, 2)
    apart = {"p.mlp.gate_proj.weight": gate, "p.mlp.up_proj.weight": up}
    fused = {"p.mlp.weights_in.weight": torch.cat([gate, up])}
    for name, tensor in named_by_key(fused.items()):
        assert torch.equal(tensor, apart[name])
    assert torch.equal(renamed(apart, fused)["p.mlp.weights_in.weight"], fused["p.mlp.weights_in.weight"])
    assert {n: t.tolist() for n, t in renamed(fused, apart).items()} == {n: t.tolist() for n, t in apart.items()}


def test_what_matches_nothing_keeps_its_name():
    given = {"encoder.layer.0.x": torch.zeros(1), "y": torch.ones(1)}
    assert set(renamed(given, ["layers.0.x", "z"])) == {"layers.0.x", "y"}
