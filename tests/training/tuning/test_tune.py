"""Every model family with every tuning method: two steps, saved and loaded, the same vectors; only what learns has changed."""

import json
import shutil

import numpy as np
import pytest
import torch

import mmtune
from mmtune.errors import MmtuneError, ModelError
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.model.artifact import load
from mmtune.training.loop import Trainer
from mmtune.training.tuning import lora
from mmtune.training.tuning.adapter_files import load_adapters
from mmtune.training.tuning.layers import blocks
from mmtune.training.tuning.tune import tune
from tests.support import checkpoints, corpora

FAMILIES = {
    "clip": ("hf", ("image", "text")),
    "siglip": ("hf", ("image", "text")),
    "clap": ("hf", ("audio", "text")),
    "clap_fused": ("hf", ("audio", "text")),
    "open_clip_dir": ("open_clip", ("image", "text")),
    "composed": ("", ("image", "text")),
    "tiny": ("tiny", ("image", "text")),
}
WAYS = ["full", "head", "lora", "qlora", "partial", {"how": "partial", "norms": True}, "frozen"]
QUICK = {("tiny", w) for w in ("full", "head", "lora", "partial", "frozen")} | {("clip", "lora"), ("open_clip_dir", "lora")}
"""The combinations that run by default; the others (all methods on transformers and open_clip) are marked slow."""


def cases():
    for family in FAMILIES:
        for how in WAYS:
            quick = isinstance(how, str) and (family, how) in QUICK
            yield pytest.param(family, how, id=f"{family}-{named(how)}", marks=[] if quick else pytest.mark.slow)


def named(how):
    return how if isinstance(how, str) else "norms" if "norms" in how else "one"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tune")


@pytest.fixture(scope="module")
def models(root):
    made = {}
    made["clap_fused"] = f"hf:{checkpoints.clap(root / 'clap_fused', fused=True)}"
    for name in ("clip", "siglip", "clap", "open_clip_dir", "text_encoder"):
        made[name] = f"{FAMILIES.get(name, ('hf',))[0]}:{getattr(checkpoints, name)(root / name)}"
    return made | {"tiny": "tiny:clip", "composed": {"image": made["clip"], "text": made.pop("text_encoder")}}


def recipe(root, run, model, pair=("image", "text"), **more):
    base = {
        "model": model,
        "data": {"train": corpora.packed(root)},
        "pairs": [list(pair)],
        "train": {"epochs": 2 / 3, "batch_size": 8, "lr": 1e-2, "warmup": 0, "precision": "fp32", "schedule": "constant"},
        "run": {"dir": str(run)},
    }
    for key, value in more.items():
        base[key] = {**base[key], **value} if isinstance(base.get(key), dict) and isinstance(value, dict) else value
    return base


def vectors(model, pair):
    rng = np.random.default_rng(0)
    import PIL.Image

    values = {
        "image": [PIL.Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(3)],
        "audio": [(rng.normal(0, 0.1, 8000).astype(np.float32), 8000) for _ in range(3)],
        "text": ["a red square", "a blue dog", "stitch"],
    }
    return {m: model.encode(**{m: values[m]}) for m in pair}


@pytest.mark.parametrize("family, how", list(cases()))
def test_two_steps_of_every_family_and_method(root, models, tmp_path, family, how, monkeypatch):
    pair, spec = FAMILIES[family][1], models[family]
    if family == "tiny" and how == "qlora":
        how = {"image": "lora", "text": "qlora"}  # its convolutions are not linear layers
    if how == "frozen":  # one tower; with both nothing would learn
        how = {pair[0]: "full", "text": "frozen"}
    adapted = {}
    finish = Trainer.load_best

    def seen(self):
        finish(self)
        adapted.update(vectors(self.model, pair))

    monkeypatch.setattr(Trainer, "load_best", seen)
    out = mmtune.train(recipe(root, tmp_path / "run", spec, pair, tune=how), quiet=True)
    base, tuned = load(spec), load(out["artifact"])
    again = vectors(tuned, pair)
    for m, v in adapted.items():
        np.testing.assert_allclose(again[m], v, atol=1e-5)
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    kept = {n for n in before if n not in moved}
    kind = how if isinstance(how, str) else how.get("how") or ("frozen" if how["text"] == "frozen" else "lora")
    if kind == "head":
        heads = {f"heads.{m}.weight" for m in pair}
        assert set(tuned.heads) >= set(pair) and not {
            n for n in moved if n.startswith("parts.") and "scale" not in n and "logit_bias" not in n
        }
        assert all(not torch.equal(after[n], torch.eye(len(after[n]))) for n in heads)
    elif kind == "partial":
        for m in pair:
            stack = blocks(base.towers[m].modules)
            first = [n for n, p in before.items() if any(p is q for q in stack[0].parameters())]
            if how == "partial" and len(stack) > 2:  # with norms, those of every block learn
                assert set(first) <= kept
            elif how == "partial" and len(stack) == 2:  # of two blocks the last one learns
                assert set(first) <= kept and moved & {
                    n for n, p in before.items() if any(p is q for q in stack[1].parameters())
                }
        if how != "partial":
            assert all("norm" in n.lower() or "ln_" in n or "scale" in n or "heads" in n or before[n].ndim < 2 for n in moved)
            assert moved
    else:
        assert any(n.endswith("weight") for n in moved)
    if kind == "frozen":
        held = {id(p) for module in base.modules_of("text") for p in module.parameters()}
        assert held and {n for n, p in before.items() if id(p) in held} <= kept
        np.testing.assert_allclose(again["text"], vectors(base, pair)["text"], atol=1e-6)
    for m in pair if kind != "frozen" else pair[:1]:
        assert 0 < out["trainable"][m]["trainable"] <= out["trainable"][m]["total"] * (1 if kind == "full" else 2)
        assert not np.allclose(vectors(base, pair)[m], again[m], atol=1e-4) or family == "composed"
    if kind in ("lora", "qlora"):
        read = load_adapters(tmp_path / "run" / "adapters")
        for m, v in vectors(read, pair).items():
            np.testing.assert_allclose(v, again[m], atol=1e-5)
        with pytest.raises(ModelError, match="these adapters were trained on"):
            load_adapters(tmp_path / "run" / "adapters", "tiny:clip@9")


@pytest.mark.parametrize("family", ["clip", "siglip", "clap", "open_clip_dir", "tiny"])
def test_new_adapters_do_not_change_vectors_and_merging_keeps_them(models, family):
    pair = FAMILIES[family][1]
    model = load(models[family])
    before = vectors(model, pair)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    tuned = tune(model, "lora", list(pair))
    for m, v in vectors(model, pair).items():
        np.testing.assert_allclose(v, before[m], atol=1e-6)
    with torch.no_grad():
        for p in lora.adapter_parameters(model).values():
            p += 0.05 * torch.randn_like(p)
    adapted = vectors(model, pair)
    assert all(not np.allclose(adapted[m], before[m], atol=1e-4) for m in pair)
    tuned.merge()
    for m, v in vectors(model, pair).items():
        np.testing.assert_allclose(v, adapted[m], atol=1e-5)
    assert {n for n, _ in model.named_parameters()} == set(weights)


@pytest.mark.parametrize(
    "how", ["lora", "head", pytest.param({"image": "lora", "text": "frozen"}, marks=pytest.mark.slow)], ids=named
)
def test_stopped_and_resumed_is_bit_identical(root, tmp_path, how, monkeypatch):
    more = {"tune": how, "train": {"epochs": 2, "checkpoint_every": 2, "ema": 0.9, "l2_start": 0.1, "micro_batch_size": 5}}
    more["data"] = {"val": corpora.packed(root, 12, 1)}
    whole = mmtune.train(recipe(root, tmp_path / "whole", "tiny:clip", **more), quiet=True)
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    base = recipe(root, tmp_path / "parts", "tiny:clip", **more)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(base, quiet=True)
    monkeypatch.undo()
    assert mmtune.train(base, resume=True, quiet=True)["fingerprint"] == whole["fingerprint"]


def test_stored_features_are_computed_once_and_validate_as_the_model(root, tmp_path, monkeypatch):
    calls, val = [], corpora.packed(root, 12, 1)
    from mmtune.embedding import feature_cache

    compute = feature_cache.tower_features

    def counted(tower, preprocess, data, rows, *rest):
        calls.extend(rows)
        return compute(tower, preprocess, data, rows, *rest)

    monkeypatch.setattr(feature_cache, "tower_features", counted)
    base = recipe(root, tmp_path / "run", "tiny:clip", tune="head", data={"val": val}, train={"epochs": 6})
    out = mmtune.train(base, quiet=True)
    assert len(calls) == 24 + 6 + 12  # pictures, words, and the pictures of the validation set; its words are known
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    best = max(r["val metric"] for r in lines if "val metric" in r)
    result = evaluate(out["artifact"], val)
    both = [result.metric("map", d) for d in ("image->text", "text->image")]
    assert best == pytest.approx(sum(both) / 2, abs=1e-6)


def test_layer_decay_and_the_frozen_tower(root, tmp_path):
    model = load("tiny:clip")
    tuned = tune(model, {"image": {"how": "full", "layer_decay": 0.5}, "text": "frozen"}, ["image", "text"])
    named = dict(model.named_parameters())
    assert tuned.lr_shares[id(named["parts.0.image.body.0.weight"])] == 0.5**4
    assert tuned.lr_shares[id(named["parts.0.image.body.8.norm.weight"])] == 0.5
    assert tuned.lr_shares[id(named["parts.0.image.head.1.weight"])] == 1
    assert not named["parts.0.text.table.weight"].requires_grad and tuned.counts["text"].trainable == 0
    assert "text: frozen, 0 of " in "\n".join(tuned.summary())
    summary = tune(load("tiny:clip"), "head", ["image", "text"], augmented=["image"]).summary()
    assert "image: head" in summary[0] and "runs in every epoch" in summary[0] and "features are stored" in summary[1]


BAD = [
    ({"tune": "lorra"}, r"tune: 'lorra'; did you mean 'lora'\?"),
    ({"tune": {"image": "lora"}}, "tune: has no entry for text"),
    ({"tune": {"image": "lora", "text": "frozen", "smell": "full"}}, r"tune\.smell: this is neither an option"),
    ({"tune": {"how": "lora", "ranks": 3}}, r"tune\.ranks: unknown; did you mean 'rank'"),
    ({"tune": {"how": "lora", "rank": 0}}, r"tune\.rank: .*greater than or equal to 1"),
    (
        {"tune": {"how": "lora", "targets": ["q_proj"]}},
        r"targets: 'q_proj' matches no layer in the blocks of this tower; possible names: ",
    ),
    ({"tune": {"how": "lora", "targets": []}}, r"targets: an empty list adapts nothing; omit this key"),
    ({"tune": {"how": "head", "rank": 4}}, r"tune\.rank: is an option of how: lora or qlora; it has no effect with how: head"),
    (
        {"tune": {"image": {"how": "full", "blocks": 2}, "text": "full"}},
        r"tune\.image\.blocks: is an option of how: partial; it has no",
    ),
    ({"tune": {"how": "full", "head_lr": 0.1}}, r"tune\.head_lr: is the learning rate of the head_first epochs"),
    ({"tune": 3}, r"recipe: tune: Input should be a valid string \(got 3\)"),
    ({"interpolate": {"coefficients": [0.5]}}, r"interpolate\.coefficients: List should have at least 2 items"),
    ({"interpolate": {"keep": 98}}, r"interpolate\.keep: .*less than or equal to 1 \(got 98"),
    ({"tune": "frozen"}, r"tune: all towers are frozen"),
    ({"tune": {"how": "partial", "blocks": 9}}, r"blocks: this tower has only 3 blocks, fewer than 9"),
    ({"tune": "qlora"}, "no linear layers that could be stored in 4 bits"),
    ({"interpolate": True}, r"interpolate: .* data\.val and data\.retention"),
    ({"data": {"retention": "TRAIN", "val": "VAL"}}, r"data\.retention: 24 of the 24 rows of .* are trained on"),
]


@pytest.mark.parametrize("change, message", BAD)
def test_bad_input_is_one_line(root, tmp_path, change, message):
    sets = {"TRAIN": corpora.packed(root), "VAL": corpora.packed(root, 12, 1)}
    if "data" in change:
        change = {"data": {k: sets[v] for k, v in change["data"].items()}}
    with pytest.raises(MmtuneError, match=message) as e:
        mmtune.train(recipe(root, tmp_path / "run", "tiny:clip", **change), quiet=True)
    assert "\n" not in str(e.value)


def test_damaged_adapters_are_refused(root, tmp_path):
    out = mmtune.train(recipe(root, tmp_path / "run", "tiny:clip", tune="lora"), quiet=True)
    folder = tmp_path / "run" / "adapters"
    assert (folder / "adapters.safetensors").stat().st_size < (tmp_path / "run/artifact/weights.safetensors").stat().st_size / 4
    assert load_adapters(folder, "tiny:clip").fingerprint == out["fingerprint"]
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "adapters.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="broken"):
        load_adapters(tmp_path / "broken", "tiny:clip")
