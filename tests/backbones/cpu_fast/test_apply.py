"""Towers with the quick steps of kernels.py in place of transformers' own: the same vectors and the same gradients."""

import copy
import math

import pytest
import torch
import transformers
from torch import nn

from mmtune.backbones.cpu_fast import apply
from mmtune.backbones.cpu_fast.first_token_block import keep_first_token
from mmtune.backbones.cpu_fast.kernels import (
    Dropout,
    PatchConv2d,
    QuickGELU,
    attend,
    keep_mask,
    project,
    replace_layers,
    windows,
)

WORDS = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=60)


def clip():
    picture = {k: v for k, v in WORDS.items() if k != "vocab_size"} | dict(image_size=16, patch_size=4)
    return transformers.CLIPModel(
        transformers.CLIPConfig(projection_dim=8, text_config=WORDS | dict(eos_token_id=59), vision_config=picture)
    )


def clap(**options):
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    sound = dict(hidden_size=32, patch_embeds_hidden_size=16, depths=[2, 2], num_attention_heads=[2, 4], num_hidden_layers=2)
    sound |= dict(spec_size=64, num_mel_bins=32, window_size=4, patch_size=4, patch_stride=[4, 4], projection_dim=8)
    sound |= dict(num_classes=4, drop_path_rate=0.0, enable_fusion=False) | still | options
    return transformers.ClapModel(transformers.ClapConfig(projection_dim=8, text_config=WORDS | still, audio_config=sound))


def bert():
    still = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertModel(transformers.BertConfig(**WORDS, **still))


def pictures(model):
    return model.get_image_features(pixel_values=torch.randn(3, 3, 16, 16)).pooler_output


def sounds(model, frames=101):
    mel = torch.randn(3, 1, frames, 32)
    return model.get_audio_features(input_features=mel, is_longer=torch.zeros(3, 1).bool()).pooler_output


def texts(model):
    tokens = torch.randint(4, 59, (3, 7))
    tokens[:, 5] = 59
    seen = torch.ones_like(tokens)
    seen[1, 6:] = 0
    if isinstance(model, transformers.BertModel):
        return model(input_ids=tokens, attention_mask=seen).last_hidden_state[:, 0]
    return model.get_text_features(input_ids=tokens, attention_mask=seen).pooler_output


def whole_texts(model):
    tokens = torch.randint(4, 59, (3, 7))
    tokens[:, 6] = 59
    return model.get_text_features(input_ids=tokens).pooler_output


def answer(model, encode):
    model.zero_grad()
    torch.manual_seed(1)
    z = encode(model)
    (z * torch.linspace(-1, 1, z.numel()).view_as(z)).sum().backward()
    return z.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(plain, quick, encode):
    (z, gradients), (z2, gradients2) = answer(plain, encode), answer(quick, encode)
    assert torch.allclose(z, z2, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == gradients2.keys() and gradients
    largest = max(g.abs().max() for g in gradients.values())
    for name, g in gradients.items():
        assert torch.allclose(g, gradients2[name], rtol=1e-3, atol=1e-5 * largest), name


CASES = [(clip, pictures), (clip, texts), (clip, whole_texts), (clap, sounds), (clap, texts), (bert, texts)]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make, encode", CASES)
@pytest.mark.parametrize("training", [True, False])
def test_a_towers_vectors_and_gradients_are_upstreams(make, encode, training, attention):
    torch.manual_seed(0)
    plain = make()
    if make is not clap:  # its audio tower knows one attention only
        plain.set_attn_implementation(attention)
    plain.train(training)
    quick = copy.deepcopy(plain)
    apply(quick)
    kinds = ("CLIPAttention", "ClapTextSelfAttention", "ClapAudioLayer", "ClapAudioEncoder", "BertSelfAttention")
    changed = [m for m in quick.modules() if {"forward", "reshape_mel2img"} & vars(m).keys()]
    assert len(changed) == sum(type(m).__name__ in kinds for m in plain.modules())
    assert quick.state_dict().keys() == plain.state_dict().keys() and quick.training is training
    same(plain, quick, encode)
    same(plain, copy.deepcopy(quick), encode)


def test_training_after_embedding():
    """What the first call keeps for the next ones is no tensor of inference mode."""
    torch.manual_seed(0)
    model = clap().eval()
    apply(model)
    with torch.inference_mode():
        sounds(model, 77)
    z, gradients = answer(model.train(), lambda model: sounds(model, 77))
    assert z.isfinite().all() and any(n.startswith("audio_model") for n in gradients)


def test_a_window_as_large_as_its_grid_is_not_shifted():
    torch.manual_seed(0)
    plain = clap(window_size=8).train()
    quick = copy.deepcopy(plain)
    apply(quick)
    same(plain, quick, sounds)


def test_the_last_block_of_claps_texts_is_cut_to_the_first_token():
    torch.manual_seed(0)
    plain = clap().train()
    short = copy.deepcopy(plain)
    keep_first_token(short.text_model)
    assert "forward" in vars(short.text_model.encoder.layer[-1]) and len(short.text_model.encoder.layer) == 2
    same(plain, short, texts)


def test_layers_that_a_tuning_put_in_place_of_linear_ones_are_asked_themselves():
    class Twice(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(0)
    plain = clip().train()
    for block in plain.vision_model.encoder.layers:
        block.self_attn.q_proj.__class__ = Twice
    quick = copy.deepcopy(plain)
    apply(quick)
    same(plain, quick, pictures)


def test_a_module_of_another_build_is_left_alone():
    model = clip()
    at = model.vision_model.encoder.layers[0].self_attn
    type(at).forward, usual = (lambda self, x, mask=None, **more: (usual(self, x, mask, **more)[0] + 1, None)), type(at).forward
    try:
        apply(model)
        assert not any("forward" in vars(m) for m in model.modules())
    finally:
        type(at).forward = usual


def test_upstreams_way_for_long_sequences_and_for_attentions():
    model = clip().eval()
    at = model.vision_model.encoder.layers[0].self_attn
    plain = copy.deepcopy(at)
    apply(model)
    assert "forward" in vars(at)
    x = torch.randn(1, 200, 32)
    assert torch.equal(at(x)[0], plain(x)[0])
    at.config._attn_implementation = plain.config._attn_implementation = "eager"
    weights = at(torch.randn(2, 5, 32), output_attentions=True)[1]
    assert weights.shape == (2, 4, 5, 5)


def test_quick_gelu():
    x = torch.randn(50, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(QuickGELU()(x), x * torch.sigmoid(1.702 * x), atol=1e-12)
    assert torch.autograd.gradcheck(QuickGELU(), (x,))


def naive(qkv, bias, scale, size, order):
    """One sequence, one window, one head at a time."""
    B, T, _, H, D = qkv.shape
    out = torch.zeros(B, T, H, D, dtype=qkv.dtype)
    for b in range(B):
        for w, tokens in enumerate(order.split(size)):
            for h in range(H):
                q, k, v = (qkv[b, tokens, i, h] for i in range(3))
                n = b * (T // size) + w
                extra = 0 if bias is None else bias[n % len(bias), h % bias.shape[1]]
                out[b, tokens, h] = (scale * q @ k.T + extra).softmax(1) @ v
    return out.flatten(2)


@pytest.mark.parametrize("size", [6, 3, 2])
@pytest.mark.parametrize("bias", [None, (1, 1), (1, 2), "each"])
def test_attention_within_windows(size, bias):
    torch.manual_seed(0)
    B, T, H, D = 2, 6, 2, 3
    qkv = torch.randn(B, T, 3, H, D, dtype=torch.float64, requires_grad=True)
    order = torch.randperm(T) if size < T else torch.arange(T)
    parts = windows(order, size, B, H) if size < T else None
    shape = (T // size, 1) if bias == "each" else bias
    added = None if shape is None else torch.randn(*shape, size, size, dtype=torch.float64, requires_grad=True)
    found = attend(qkv, added, 0.7, parts=parts)
    assert torch.allclose(found, naive(qkv, added, 0.7, size, order))
    assert torch.autograd.gradcheck(lambda x, b: attend(x, b, 0.7, parts=parts), (qkv, added))


def test_dropout_of_the_attention_repeats_and_its_gradient_has_the_same_mask():
    qkv = torch.randn(2, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True)

    def run(x):
        torch.manual_seed(3)
        return attend(x, None, 0.5, 0.4)

    assert not torch.allclose(run(qkv), attend(qkv, None, 0.5))
    assert torch.autograd.gradcheck(run, (qkv,))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9])
def test_masks_drop_as_many_as_asked_keep_the_mean_and_repeat(p):
    n = 1_000_003
    x = torch.ones(n)
    torch.manual_seed(5)
    kept, factor = keep_mask(x, p)
    share = 1 - kept.double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / n) + 1 / 65536 + 1e-12
    assert abs((kept * factor).double().mean().item() - 1) < 0.01
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.manual_seed(5)
        assert torch.equal(keep_mask(x, p)[0], kept)
    finally:
        torch.set_num_threads(threads)
    a, b = kept[:-1].double() - kept.double().mean(), kept[1:].double() - kept.double().mean()
    assert abs((a * b).mean()) < 5 / math.sqrt(n)  # neighbours, which share a drawn number, do not know of each other


def test_dropout_layer():
    x = torch.randn(40, 30, requires_grad=True)
    layer = Dropout(0.3)
    torch.manual_seed(0)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y == 0, x.grad == 0) and 0.2 < (y == 0).float().mean() < 0.4
    assert torch.allclose(y, x * x.grad)
    assert torch.equal(layer.eval()(x), x) and torch.equal(Dropout(0.0).train()(x), x)
    assert (Dropout(1.0)(x) == 0).all()


def test_patches_that_do_not_overlap():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 5, (2, 4), (2, 4)), nn.Conv2d(5, 2, 3, 2), nn.Conv2d(2, 2, 1, padding=1))
    quick = copy.deepcopy(plain)
    replace_layers(quick)
    assert [type(m) for m in quick] == [PatchConv2d, nn.Conv2d, nn.Conv2d]
    for shape in ((2, 3, 12, 16), (2, 3, 13, 18)):  # the second leaves a rest over
        x = torch.randn(*shape, requires_grad=True)
        a, b = plain(x), quick(x)
        assert torch.allclose(a, b, atol=1e-5)
        g = torch.randn_like(a)
        assert torch.allclose(*(torch.autograd.grad(y, x, g)[0] for y in (a, b)), atol=1e-5)


def test_projections_without_a_bias():
    layers = tuple(nn.Linear(6, 8, bias=False) for _ in range(3))
    x = torch.randn(2, 5, 6)
    found = project(x, layers, 2)
    assert found.shape == (2, 5, 3, 2, 4)
    assert torch.allclose(found.flatten(3), torch.stack([f(x) for f in layers], 2), atol=1e-6)
