"""Micro-batches by length: the gradient of one graph, less padding, one micro-batch of inputs on the device at a time."""

import contextlib
import itertools
import json
import random

import numpy as np
import pytest
import torch

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.errors import RecipeError
from mmtune.modalities.sound import Sound
from mmtune.model.dual_encoder import Model
from mmtune.runtime.distributed import SINGLE_PROCESS
from mmtune.training.build_objective import build_objective
from mmtune.training.large_batch import micro_batches
from mmtune.training.large_batch.item_slices import count_batch_items, count_items
from mmtune.training.large_batch.micro_batches import Limits, cuts_by_length, cuts_by_tokens, divide_batch
from mmtune.training.step import forward_backward, plain_step
from tests.support import checkpoints, corpora
from tests.support.gpu_steps import batch_of
from tests.support.single_checkpoints import SOUNDS, small

BUDGET = 60


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Model:
    """A BERT with dropout as the text tower of a dual encoder."""
    folder = checkpoints.text_encoder(tmp_path_factory.mktemp("text"))
    return with_scale(mmtune.load(f"image=tiny:image,text=hf:{folder}", device="cpu"), "image", "text")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Model:
    """A Wav2Vec2 that masks padding as the sound tower of a dual encoder."""
    from transformers import Wav2Vec2FeatureExtractor

    folder = tmp_path_factory.mktemp("sound")
    small("Wav2Vec2", SOUNDS["wav2vec2-layer"][1], folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(folder)
    return with_scale(mmtune.load(f"audio=hf:{folder},text=tiny:text", device="cpu"), "audio", "text")


def with_scale(model: Model, a: str, b: str) -> Model:
    model.ensure_logit_scales([(a, b)])
    return model


def collated(model: Model, modality: str, signals: list) -> dict:
    preprocess = model.towers[modality].preprocess
    return preprocess.collate([preprocess(s) for s in signals])


def words(count: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices("abcdefgh", k=rng.randint(1, 28))) for _ in range(count)]


def pictures_and_texts(model: Model, rows: int = 16):
    image = torch.randn(rows, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return batch_of({"image": {"planes": image}, "text": collated(model, "text", words(rows))})


def sounds_and_texts(model: Model, rows: int = 8):
    rng = np.random.default_rng(0)
    signals = [Sound(rng.standard_normal(n).astype(np.float32), 16_000) for n in rng.integers(500, 8000, rows)]
    inputs = collated(model, "audio", signals)
    if rows > 6:  # item 1 has two windows, item 4 three
        counts = torch.tensor([2 if i == 1 else 3 if i == 4 else 1 for i in range(rows - 3)])
        inputs["segments"] = torch.repeat_interleave(torch.arange(rows - 3), counts)
    items = count_items(inputs)
    return batch_of({"text": collated(model, "text", words(items)), "audio": inputs})


def gradient(model: Model, batch, train: bool = False, **limits):
    """(gradients of all parameters, shapes of the inputs of each forward pass with lengths)."""
    seen: list[tuple[int, int]] = []
    model.train(train)
    model.zero_grad(set_to_none=True)
    usual = Model.encode_inputs

    def recorded(self, modality, inputs):
        tensor = inputs.get("input_ids", inputs.get("input_values", inputs.get("ids")))
        if tensor is not None:
            seen.append(tuple(tensor.shape))
        return usual(self, modality, inputs)

    a, b = batch.inputs
    objective = build_objective([{"loss": "info_nce"}], [(a, b)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Model, "encode_inputs", recorded)
        torch.manual_seed(5)
        loss = forward_backward(model, batch, objective, **limits).loss
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return loss, grads, seen


@pytest.mark.parametrize(
    "limits", [{"micro_batch_tokens": BUDGET}, {"micro_batch_tokens": {"text": BUDGET}}, {"length_buckets": 4}]
)
def test_texts_sorted_by_length_give_the_gradient_of_the_batch_with_less_padding(texts, limits):
    batch = pictures_and_texts(texts)
    loss, plain, whole = gradient(texts, batch)
    same_loss, found, parts = gradient(texts, batch, **limits)
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert float((plain - found).norm() / plain.norm()) < 1e-5
    used = int(batch.inputs["text"]["attention_mask"].sum())
    caches = "length_buckets" not in limits
    parts = parts[: len(parts) // 2] if caches else parts  # each is encoded twice
    (padded,) = [n * t for n, t in whole]
    assert used <= sum(n * t for n, t in parts) < used + 0.5 * (padded - used)
    if caches:
        assert len(parts) > 4 and max(n * t for n, t in parts) <= BUDGET
        assert [t for _, t in parts] == sorted((t for _, t in parts), reverse=True)  # the most memory first
    else:
        assert len(parts) == 4


@pytest.mark.parametrize("limits", [{"micro_batch_tokens": {"audio": 9000}}, {"length_buckets": 3}])
def test_waveforms_with_several_windows(sounds, limits):
    batch = sounds_and_texts(sounds)
    loss, plain, whole = gradient(sounds, batch)
    same_loss, found, parts = gradient(sounds, batch, **limits)
    assert same_loss == pytest.approx(loss, rel=1e-4)
    assert float((plain - found).norm() / plain.norm()) < 1e-3
    assert len(parts) > len(whole) + 2
    if "length_buckets" not in limits:
        rows = torch.bincount(batch.inputs["audio"]["segments"]).max()
        sizes = [n * t for n, t in parts if t > 100]
        assert all(n * t <= 9000 or n <= rows for n, t in parts) and sum(sizes) / 2 < max(n * t for n, t in whole)


@pytest.mark.parametrize("tokens", [BUDGET, {"text": 1}])
def test_cached_gradients_have_the_same_dropout_as_one_graph(texts, tokens):
    batch, objective = pictures_and_texts(texts), build_objective([{"loss": "info_nce"}], [("image", "text")])
    counts = count_batch_items(batch, SINGLE_PROCESS, False)
    parts = divide_batch(texts, batch, counts, Limits(None, tokens), SINGLE_PROCESS, False)
    texts.train()
    texts.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    loss = plain_step(texts, batch, objective, parts, contextlib.nullcontext).loss
    want = torch.cat([p.grad.flatten() for p in texts.parameters() if p.grad is not None])
    after = torch.rand(1)
    got, found, _ = gradient(texts, batch, train=True, micro_batch_tokens=tokens)
    assert torch.equal(torch.rand(1), after)
    assert got == pytest.approx(loss, rel=1e-5) and float((want - found).norm() / want.norm()) < 1e-5
    assert not torch.allclose(gradient(texts, batch, train=False)[1], want, rtol=1e-2)  # there is dropout


def test_only_a_micro_batch_of_inputs_is_copied_to_the_device(texts, monkeypatch):
    copied, usual = [], micro_batches.to_device
    monkeypatch.setattr(micro_batches, "to_device", lambda x, d: (copied.append(x), usual(x, d))[1])
    batch = pictures_and_texts(texts)
    gradient(texts, batch, micro_batch_tokens=BUDGET, micro_batch_size=5)
    by_text = [x["input_ids"] for x in copied if "input_ids" in x]
    assert max(x.numel() for x in by_text) <= BUDGET and max(len(x) for x in by_text) <= 5
    assert max(len(x["planes"]) for x in copied if "planes" in x) == 5
    assert sum(map(len, by_text)) == 2 * 16


def test_inputs_go_to_another_device_one_micro_batch_at_a_time(texts):
    """On the device "meta", whose tensors have no content: what is there when a tower runs is one micro-batch."""
    batch, device = pictures_and_texts(texts), torch.device("meta")
    counts = count_batch_items(batch, SINGLE_PROCESS, False)
    parts = divide_batch(texts, batch, counts, Limits(4, BUDGET), SINGLE_PROCESS, False)
    for part in parts:
        there = part.inputs(texts, batch, device)
        assert {v.device.type for v in there.values()} == {"meta"} and len(next(iter(there.values()))) == len(part) <= 4
    assert {v.device.type for x in batch.inputs.values() for v in x.values()} == {"cpu"}
    assert sum(map(len, parts)) == 32


def test_an_item_over_the_budget_is_a_micro_batch_of_its_own():
    longest, rows = np.array([50, 9, 9, 4, 4, 1]), np.array([1, 1, 1, 2, 1, 1])
    assert cuts_by_tokens(longest, rows, 20) == [0, 1, 3]
    assert cuts_by_tokens(longest, rows, 20, size=2) == [0, 1, 3, 5]
    assert cuts_by_tokens(longest, rows, 1) == [0, 1, 2, 3, 4, 5]


def test_buckets_have_the_least_padding_that_is_possible():
    rng = np.random.default_rng(0)
    for buckets in (2, 3, 4):
        longest, rows = np.sort(rng.integers(1, 40, 11))[::-1].copy(), rng.integers(1, 3, 11)

        def cost(starts, longest=longest, rows=rows):
            return sum(int(rows[i:j].sum()) * int(longest[i]) for i, j in zip(starts, [*starts[1:], 11], strict=True))

        ways = [[0, *c] for n in range(buckets) for c in itertools.combinations(range(1, 11), n)]
        starts = cuts_by_length(longest, rows, buckets)
        assert len(starts) <= buckets and cost(starts) == min(map(cost, ways))
    assert cuts_by_length(np.array([7, 7, 7]), np.ones(3, int), 4) == [0]
    many = np.arange(5000, 0, -1)
    assert len(cuts_by_length(many, np.ones(5000, int), 8)) == 8


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> str:
    """Shards of pictures with captions of 1 to 28 words."""
    root = tmp_path_factory.mktemp("captions")
    table = corpora.source(root / "src", 24, 0, ("image", "text"))
    lines = table.read_text().split("\n")
    rows = [
        line.rsplit("a ", 1)[0] + text + "," + line.split(",", 3)[3] for line, text in zip(lines[1:25], words(24), strict=True)
    ]
    table.write_text("\n".join([lines[0], *rows]) + "\n")
    pack(table, root / "packed")
    return str(root / "packed")


@pytest.mark.parametrize("keys", [{"micro_batch_tokens": 40, "micro_batch_size": 5}, {"length_buckets": 3}])
def test_a_recipe_trains_to_the_same_losses(captions, tmp_path, keys):
    losses = {}
    for name, more in {"plain": {}, "by length": keys}.items():
        settings = {"epochs": 2, "batch_size": 12, "lr": 1e-3, "precision": "fp32", **more}
        run = tmp_path / name
        mmtune.train(
            {"model": "tiny:clip", "data": {"train": captions}, "train": settings, "run": {"dir": str(run)}}, quiet=True
        )
        logged = [json.loads(x) for x in (run / "metrics.jsonl").read_text().split("\n") if x]
        losses[name] = [x["loss"] for x in logged if "loss" in x]
    assert len(losses["plain"]) == 4 and losses["by length"] == pytest.approx(losses["plain"], rel=1e-4)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (
            {"train": {"micro_batch_tokens": {"image": 9}}},
            "train.micro_batch_tokens.image: all inputs of this tower have one length; use",
        ),
        ({"train": {"micro_batch_tokens": {"audio": 9}}}, "train.micro_batch_tokens.audio: audio is not trained here"),
        (
            {"pairs": [["image", "image"]], "train": {"micro_batch_tokens": 9}},
            "no trained tower of this model has inputs of unlike",
        ),
        ({"pairs": [["image", "image"]], "train": {"length_buckets": 2}}, "train.length_buckets: no trained tower"),
        ({"train": {"length_buckets": 2, "micro_batch_size": 4}}, "length_buckets: is for training without gradient caching"),
        ({"train": {"length_buckets": 2, "shard": True}}, "length_buckets: with shard all processes must run equal parts"),
        ({"train": {"micro_batch_tokens": 0}}, "train.micro_batch_tokens"),
        ({"train": {"length_buckets": 1}}, "train.length_buckets"),
        (
            {"cross_encoder": {}, "train": {"micro_batch_tokens": 9}},
            "cross_encoder: does not work with train.micro_batch_tokens",
        ),
    ],
)
def test_mistakes_are_refused_before_training(captions, tmp_path, keys, says):
    recipe = {"model": "tiny:clip", "data": {"train": captions}, "run": {"dir": str(tmp_path / "run")}} | keys
    with pytest.raises(RecipeError) as e:
        mmtune.train(recipe, quiet=True)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_towers_whose_embeddings_depend_on_padding_have_no_lengths(tmp_path):
    assert not micro_batches.has_lengths(mmtune.load(f"hf:{checkpoints.siglip(tmp_path / 's')}", device="cpu").towers["text"])
    assert micro_batches.has_lengths(mmtune.load(f"hf:{checkpoints.clip(tmp_path / 'c')}", device="cpu").towers["text"])
