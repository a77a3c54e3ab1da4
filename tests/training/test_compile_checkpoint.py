"""Activation checkpointing and torch.compile of blocks: the gradients of a plain step, dropout included; undone afterwards."""

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import mmtune
from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe
from mmtune.training.compile_checkpoint import channels_last_convolutions, compiled_or_checkpointed, first_convolution
from tests.support import checkpoints, corpora
from tests.support.single_checkpoints import image_folder


class Model:
    """A real small CLIP with dropout, as `compiled_or_checkpointed` takes a model: towers that own modules."""

    class Tower:
        def __init__(self, *modules):
            self.modules = list(modules)

    device = torch.device("cpu")

    def __init__(self):
        torch.manual_seed(0)
        size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, attention_dropout=0.2)
        words = dict(**size, vocab_size=64, max_position_embeddings=16, eos_token_id=63, bos_token_id=62)
        self.clip = CLIPModel(CLIPConfig(text_config=words, vision_config=dict(**size, image_size=16, patch_size=4))).train()
        self.towers = {"a": self.Tower(self.clip.vision_model), "b": self.Tower(self.clip.text_model)}

    def step(self, compiled=False, recompute=False):
        """(gradients, bytes that autograd keeps for the backward pass)."""
        self.clip.zero_grad()
        kept = 0

        def remember(x):
            nonlocal kept
            kept += 0 if isinstance(x, torch.nn.Parameter) else x.numel() * x.element_size()
            return x

        pixels = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        words = torch.randint(0, 62, (6, 8), generator=torch.Generator().manual_seed(2))
        words[:, -1] = 63
        torch.manual_seed(3)
        with compiled_or_checkpointed(self, compiled, recompute):
            with torch.autograd.graph.saved_tensors_hooks(remember, lambda x: x):
                a = self.clip.get_image_features(pixel_values=pixels).pooler_output
                b = self.clip.get_text_features(input_ids=words).pooler_output
            torch.nn.functional.cross_entropy(a @ b.T, torch.arange(6)).backward()
        return torch.cat([p.grad.flatten() for p in self.clip.parameters() if p.grad is not None]), kept


def test_recomputed_blocks_give_the_same_gradients_for_less_memory():
    model = Model()
    (plain, kept), (again, less) = model.step(), model.step(recompute=True)
    assert torch.equal(plain, again)
    assert less < 0.3 * kept
    assert torch.equal(model.step()[0], plain) and model.step()[1] == kept  # and the model is as it was
    assert not any("forward" in vars(m) for m in model.clip.modules())


class NoisyBlock(torch.nn.Module):
    """Dropout by a generator of its own, in the place of that of Apple's GPU."""

    def __init__(self, generator):
        super().__init__()
        self.linear, self.generator = torch.nn.Linear(16, 16), generator

    def forward(self, x):
        return self.linear(x) * (torch.rand(x.shape, generator=self.generator) < 0.5)


def test_blocks_on_apples_gpu_are_recomputed_with_the_same_dropout(monkeypatch):
    """torch's checkpointing leaves that generator alone, so its state has to be restored for the backward pass."""
    generator = torch.Generator()
    monkeypatch.setattr(torch.mps, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", generator.set_state)
    model = Model()
    model.device = torch.device("mps")
    layers = torch.nn.Module()
    layers.blocks = torch.nn.ModuleList(NoisyBlock(generator) for _ in range(3))
    model.towers = {"a": Model.Tower(layers)}
    x, found = torch.rand(8, 16), []
    for recompute in (False, True):
        generator.manual_seed(0)
        layers.zero_grad()
        with compiled_or_checkpointed(model, False, recompute):
            y = x
            for block in layers.blocks:
                y = block(y)
            y.square().sum().backward()
        found.append((torch.cat([p.grad.flatten() for p in layers.parameters()]), generator.get_state()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    with pytest.raises(RecipeError, match=r"train\.recompute: on Apple's GPU"):
        with compiled_or_checkpointed(model, True, True):
            pass


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("recompute", "mode"), [(False, True), (True, True), (False, "reduce-overhead"), (False, "default")])
def test_compiled_blocks_give_the_same_gradients(recompute, mode):
    model = Model()
    for layer in [m for m in model.clip.modules() if hasattr(m, "dropout") and isinstance(m.dropout, float)]:
        layer.dropout = 0.0  # compiled dropout draws other numbers
    plain, _ = model.step()
    compiled, _ = model.step(compiled=mode, recompute=recompute)
    assert float((plain - compiled).norm() / plain.norm()) < 1e-4
    assert torch.equal(model.step()[0], plain)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recompute", True),
        ("channels_last", True),
        pytest.param("compile", True, marks=pytest.mark.slow),
        pytest.param("compile", "reduce-overhead", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(900)
def test_a_recipe_switches_it_on(key, value, tmp_path):
    losses = {}
    for on in (False, value):
        run = {"dir": str(tmp_path / str(on))}
        settings = {"epochs": 1, "batch_size": 8, "lr": 1e-3, "precision": "fp32", key: on}
        mmtune.train(
            {"model": "tiny:clip", "data": {"train": corpora.packed(tmp_path)}, "train": settings, "run": run}, quiet=True
        )
        lines = [json.loads(x) for x in (tmp_path / str(on) / "metrics.jsonl").read_text().splitlines()]
        losses[on] = [x["loss"] for x in lines if "loss" in x]
    assert len(losses[value]) == 3 and losses[value] == pytest.approx(losses[False], rel=1e-4)


def test_blocks_with_cuda_graphs_are_not_compiled_in_eval_mode(monkeypatch):
    """Each batch of validation would record graphs of its own."""
    ran = []
    monkeypatch.setattr(torch, "compile", lambda call, mode=None, **_: lambda *a, **k: (ran.append(mode), call(*a, **k))[1])
    model = Model()
    for mode, in_eval in (("reduce-overhead", 0), ("max-autotune", 0), ("default", 6), (True, 6)):
        model.clip.train()
        ran.clear()
        model.step(compiled=mode)
        assert len(ran) == 6 and set(ran) == {None if mode is True else mode}  # three blocks of two towers
        model.clip.eval()
        model.step(compiled=mode)
        assert len(ran) == 6 + in_eval
    ran.clear()
    model.step()
    assert not ran


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"compile": "reduce-overhead", "micro_batch_size": 4}, "reduce-overhead replays CUDA graphs"),
        ({"compile": "max-autotune", "gradient_accumulation_steps": 2}, "use compile: true with gradient_accumulation_steps"),
        ({"compile": "reduce-overhead", "shard": True}, "use compile: true with shard"),
        ({"compile": "fast"}, "train.compile"),
    ],
)
def test_modes_that_do_not_fit(train, says):
    with pytest.raises(RecipeError) as e:
        Recipe.parse({"model": "tiny:clip", "data": {"train": "x"}, "train": train})
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_convolutional_tower_in_channels_last_has_the_same_gradient(tmp_path):
    """A ResNet of transformers: every convolution sees the format, and the format is gone afterwards."""
    image_folder("resnet", tmp_path / "m")
    model = mmtune.load(f"hf:{tmp_path / 'm'}", device="cpu").eval()
    tower, formats = model.towers["image"], []
    for conv in [m for m in tower.modules[0].modules() if isinstance(m, torch.nn.Conv2d)]:
        conv.register_forward_hook(
            lambda m, i, o: formats.append((i[0].is_contiguous(memory_format=torch.channels_last), i[0].is_contiguous()))
        )
    images = {"pixel_values": torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
    found, seen = [], []
    for wanted in (False, True, False):
        formats.clear()
        model.zero_grad()
        with channels_last_convolutions(model, wanted):
            (model.encode_inputs("image", images) * torch.arange(32)).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        seen.append([x for x in formats if x != (True, True)])  # one pixel or one channel is both
    # without the key some later convolutions may see it too: torch's own choice after a kernel of 1 x 1, whose weights have both formats
    assert len(seen[1]) > 4 and all(last for last, _ in seen[1])
    assert seen[0] == seen[2] and seen[0][0] == (False, True)
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-4 and torch.equal(found[0], found[2])
    assert found[0].abs().sum() > 0


def test_channels_last_needs_a_convolutional_tower(tmp_path):
    model = mmtune.load(f"hf:{checkpoints.clip(tmp_path / 'm')}", device="cpu")
    assert all(first_convolution(tower.modules) is None for tower in model.towers.values())
    with pytest.raises(RecipeError, match=r"train\.channels_last: no tower of this model is a convolutional network"):
        with channels_last_convolutions(model, True):
            pass
