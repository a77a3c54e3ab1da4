"""Random combinations of options: a wrong one is an error in one line before the first step, any other trains and resumes exactly."""

import json
import math
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.errors import MmtuneError
from mmtune.training.loop import Trainer
from tests.support.data_helpers import picture, write_csv

pytest.importorskip("pytorch_metric_learning", reason="the extra pml")
ROWS = 14


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Packed training and validation rows with groups, grades and a length, and a file of negatives."""
    root = tmp_path_factory.mktemp("combinations")
    for split, first in (("train", 0), ("val", 100)):
        rows = []
        for i in range(ROWS if split == "train" else 6):
            (root / f"{first + i}.png").write_bytes(picture(first + i))
            rows.append({"id": f"{split}{i}", "image": f"{first + i}.png", "text": f"thing {first + i // 2}"})
            rows[-1] |= {"group": f"{split}{i // 3}", "grade": (i % 3) / 2, "length": i % 5, "shop": "ab"[i % 2]}
        if split == "train":
            rows[4]["image"] = rows[9]["text"] = ""
        pack(write_csv(root / f"{split}.csv", rows), root / split)
    write_csv(root / "own.csv", [{"query_id": f"train{i}", "negative_id": f"train{(i + 6) % ROWS}"} for i in range(8)])
    return root


def optional(**keys):
    """A mapping with some of the keys."""
    return st.fixed_dictionaries({}, optional=keys)


def merged(*parts):
    return st.tuples(*parts).map(lambda found: {k: v for part in found for k, v in part.items()})


SHARES = st.sampled_from([0.0, 0.1, 0.5])
CONTRASTIVE = optional(
    weight=st.sampled_from([0.5, 2.0]),
    directions=st.sampled_from(["both", "forward", "backward"]),
    scale=st.just(10.0),
    weights=st.just("grade"),
    queries=st.sampled_from(["rows", "items"]),
    guide=st.just("big"),
    tile=st.sampled_from(["auto", "always", "never"]),
)


def loss(name, **options):
    return merged(CONTRASTIVE, st.just({"loss": name}), optional(**options))


TERMS = st.one_of(
    loss(
        "info_nce",
        positives=st.sampled_from(["mean", "mask", "sum"]),
        smoothing=SHARES,
        hardness=SHARES,
        robustness=st.sampled_from([0.0, 0.7]),
    ),
    loss("auto"),
    loss("sigmoid", bias=st.sampled_from([-10.0, -1.0])),
    loss("triplet", distance=st.sampled_from(["cosine", "euclidean"]), mining=st.sampled_from(["hard", "semi_hard"])),
    st.sampled_from([{"loss": x, "column": "grade"} for x in ("mse", "cosine", "cosent")]),
    st.sampled_from([{"loss": x, "teacher": "big"} for x in ("kl", "score_mse", "margin_mse", "feature")]),
    st.sampled_from(
        [{"loss": "info_nce", "views": {"text": "dropout"}}, {"loss": "info_nce", "views": {"image": "augmentation"}}]
    ),
    st.sampled_from(["pml:ProxyAnchorLoss", "pml:SupConLoss", "pml:ArcFaceLoss"]).map(
        lambda x: {"loss": x, "pairs": [["image", "image"]]}
    ),
)
TOWERS = st.sampled_from(
    [
        "full",
        "head",
        "frozen",
        {"how": "full", "layer_decay": 0.7},
        {"how": "full", "unfreeze_every": 0.5},
        {"how": "full", "lr": 1e-4, "weight_decay": 0.0},
        {"how": "partial", "blocks": 1},
        {"how": "partial", "norms": True},
        {"how": "lora", "rank": 2, "dropout": 0.2},
        {"how": "full", "head_first": 1},
    ]
)
SCHEDULES = st.sampled_from(
    [
        {},
        {"schedule": "linear", "min_lr": 0.1},
        {"schedule": "constant"},
        {"schedule": "wsd"},
        {"schedule": "wsd", "min_lr": 0.2},
    ]
)
TRAIN = optional(
    micro_batch_size=st.sampled_from([1, 3]),
    gradient_accumulation_steps=st.sampled_from([2, 3]),
    optimizer=st.sampled_from(["adamw", "lion", "adafactor", "lamb"]),
    warmup=st.sampled_from([0, 0.3, 1]),
    ema=st.just(0.8),
    l2_start=st.just(0.5),
    clip_norm=st.just(None),
    scale_lr=st.just(0.0),
    precision=st.sampled_from(["fp32", "bf16"]),
    recompute=st.just(True),
    validate_every=st.just(2),
    validate_at_start=st.just(True),
    keep=st.just(1),
    epochs=st.sampled_from([1, 2.5]),
)
DATA = optional(
    batches=st.sampled_from(
        ["spread", {"groups": 2, "rows": 2}, {"plan": "balanced"}, {"plan": "one_source", "column": "shop"}]
        + [{"plan": "buckets", "column": "length", "sorted_batches": 2}]
    ),
    negatives_per_query=st.sampled_from([1, 3]),
    cache=st.just("1MB"),
    workers=st.just(1),
)
MINING = st.sampled_from(
    [{"rounds": 1, "negatives": 2, "window": 4}, {"rounds": 1, "negatives": 1, "window": 3, "use": {"confusable": 0.5}}]
)
RECIPES = st.fixed_dictionaries(
    {
        "objective": st.lists(TERMS, min_size=1, max_size=2),
        "train": merged(TRAIN, SCHEDULES),
        "data": DATA,
        "val": st.booleans(),
    },
    optional={
        "pairs": st.sampled_from([[["image", "text"]], [["text", "image"], ["image", "image"]], [["text", "text"]]]),
        "tune": st.one_of(TOWERS, st.fixed_dictionaries({"image": TOWERS, "text": TOWERS})),
        "matryoshka": st.just({"dims": [8, 32]}),
        "memory": st.sampled_from([{"size": 3}, {"size": 20, "start": 1}]),
        "augment": st.sampled_from([{"image": {"flip": True}}, {"image": {"crop": 0.5, "mixup": 0.2}}]),
        "mining": MINING,
        "own_negatives": st.just(True),
    },
)


def complete(drawn, root, run):
    """The recipe of the drawn options, which trains into `run`."""
    options = {k: v for k, v in drawn.items() if k not in ("val", "own_negatives", "data", "train")}
    data = {"train": str(root / "train"), **drawn["data"]}
    data |= {"val": str(root / "val")} if drawn["val"] or "validate_at_start" in drawn["train"] else {}
    data |= {"negatives": str(root / "own.csv")} if "own_negatives" in drawn else {}
    if any({"guide", "teacher"} & set(term) for term in drawn["objective"]):
        options["teachers"] = {"big": {"model": "tiny:clip@3", "out": str(root / "teachers")}}
    train = {
        "epochs": 2,
        "batch_size": 4,
        "lr": 1e-3,
        "warmup": 0,
        "precision": "fp32",
        "checkpoint_every": 1,
        **drawn["train"],
    }
    return {"model": "tiny:clip", "data": data, "train": train, "run": {"dir": str(run), "trackers": []}, **options}


def outcome(run):
    """(bytes of the weights, lines of metrics.jsonl without speeds)."""
    lines = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in line.items() if k not in ("pairs_per_second", "wait")} for line in lines]
    return (run / "artifact" / "weights.safetensors").read_bytes(), plain


def trained(recipe, monkeypatch, stop_at=None, resume=False):
    """Train; returns the number of batches that were trained on. stop_at: raise KeyboardInterrupt at this one."""
    step, done = Trainer.step, []

    def counted(self, batch):
        if len(done) + 1 == stop_at:
            raise KeyboardInterrupt
        result = step(self, batch)
        done.append(1)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", counted)
        try:
            mmtune.train(recipe, resume=resume, quiet=True)
        except KeyboardInterrupt:
            assert stop_at is not None
        except MmtuneError as e:
            assert not done, f"after {len(done)} batches: {e}"
            assert "\n" not in str(e)
            return 0
    return len(done)


def check(drawn, root, where, monkeypatch):
    """Train whole, and again with a kill in the middle and --resume."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = trained(complete(drawn, root, where / "whole"), monkeypatch)
        event("trained" if batches else "refused")
        if not batches:
            return
        weights, lines = outcome(where / "whole")
        assert all(math.isfinite(v) for line in lines for v in line.values())
        recipe = complete(drawn, root, where / "parts")
        trained(recipe, monkeypatch, stop_at=1 + batches * 2 // 3)
        trained(recipe, monkeypatch, resume=True)
    again, resumed_lines = outcome(where / "parts")
    assert resumed_lines == lines
    assert again == weights


def checked(root, monkeypatch, examples):
    """Check this many combinations, the same ones every time."""

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn=RECIPES)
    def each(drawn):
        where = Path(tempfile.mkdtemp(dir=root))
        try:
            check(drawn, root, where, monkeypatch)
        finally:
            shutil.rmtree(where)

    each()


def test_six_combinations(root, monkeypatch):
    checked(root, monkeypatch, 6)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)  # half an hour of CPU time, which the limit of one test does not allow
def test_385_combinations(root, monkeypatch):
    checked(root, monkeypatch, 385)
