"""The last block of CLIP's picture tower, cut to the token that is pooled: upstream's vectors and gradients, less work."""

import copy

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmtune.backbones.cpu_fast.first_token_block import keep_first_token


def tower(**options):
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=16, patch_size=4)
    return CLIPVisionModel(CLIPVisionConfig(**size, **options)).train()


def run(module, x):
    module.zero_grad()
    z = module(x).pooler_output
    (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum().backward()
    return z.detach(), {n: p.grad for n, p in module.named_parameters()}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_vectors_and_gradients_are_upstreams(attention):
    plain = tower(attn_implementation=attention)
    short = copy.deepcopy(plain)
    keep_first_token(short)
    assert "forward" in vars(short.encoder.layers[-1]) and len(short.encoder.layers) == 3
    x = torch.randn(5, 3, 16, 16)
    (z, gradients), (z2, gradients2) = run(plain, x), run(short, x)
    assert torch.allclose(z, z2, atol=1e-5)
    assert gradients.keys() == gradients2.keys()
    for name, g in gradients.items():
        assert (g is None) == (gradients2[name] is None)
        assert g is None or torch.allclose(g, gradients2[name], atol=1e-5), name
    assert short(x).last_hidden_state.shape == (5, 1, 32)
    assert torch.allclose(run(copy.deepcopy(short), x)[0], z, atol=1e-5)  # a copy's block is its own
    assert copy.deepcopy(short).encoder.layers[-1].forward.__self__ is not short.encoder.layers[-1]


def test_a_tower_of_another_build_is_left_alone():
    other = tower()
    layer = other.encoder.layers[-1]
    plain = type(layer).forward
    layer.mlp.forward = lambda x: x - x.mean(1, keepdim=True)  # a block in which tokens also meet after the attention
    keep_first_token(other)
    assert "forward" not in vars(layer) and type(layer).forward is plain and len(other.encoder.layers) == 3
