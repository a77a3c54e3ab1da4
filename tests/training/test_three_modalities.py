"""Three modalities in one space: the towers of a CLIP and a CLAP bound by captions; image-audio pairs are never trained."""

import csv
from pathlib import Path

import numpy as np
import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.demo.machine_hall import write_machine_hall
from tests.support import checkpoints, corpora

RECIPE = Path(__file__).parents[2] / "recipes" / "three_modalities.yaml"


def halves(root, rows_each=4, val=2):
    """The demo's machine corpus: training rows with an image or a sound, validation rows with both."""
    source = write_machine_hall(root / "source", machines=2, train_per_state=2 * rows_each, val_per_state=val)
    rows = list(csv.DictReader(open(source / "train.csv")))
    for name, gone, part in (("photos", "audio", rows[::2]), ("sounds", "image", rows[1::2])):
        with open(source / f"{name}.csv", "w", newline="") as f:
            table = csv.DictWriter(f, [k for k in rows[0] if k != gone], extrasaction="ignore")
            table.writeheader()
            table.writerows(part)
        pack(source / f"{name}.csv", root / name)
    pack(source / "val.csv", root / "val")
    return [f"data.train=[{root}/photos, {root}/sounds]", f"data.val={root}/val", "data.workers=1"]


def test_the_recipe_binds_a_clip_and_a_clap(tmp_path):
    clip, clap = (f"hf:{getattr(checkpoints, n)(tmp_path / n)}" for n in ("clip", "clap"))
    model = [f"model={{image: '{clip}', audio: '{clap}', text: '{clip}'}}"]
    short = ["train.epochs=1", "train.warmup=0", "train.batch_size=12", "train.precision=fp32", f"run.dir={tmp_path / 'run'}"]
    out = mmtune.train(RECIPE, [*model, *halves(tmp_path, 1, 1), *short], quiet=True)
    assert out["metrics"]["untrained_directions"] == ["image->audio", "audio->image"]
    assert out["trainable"]["audio"]["trainable"] > 0 == out["trainable"]["text"]["trainable"]
    before, after = mmtune.load(clip), mmtune.load(out["artifact"])
    np.testing.assert_allclose(after.encode(text="a fan"), before.encode(text="a fan"), atol=1e-6)  # the anchor has not moved
    assert set(out["metrics"]["directions"]) >= {"image->audio", "audio->text", "text->image"}


@pytest.mark.slow
def test_image_to_audio_retrieval_without_such_training_pairs(tmp_path):
    data = halves(tmp_path, 12, 5)
    photos, sounds = (open_data(str(tmp_path / n)) for n in ("photos", "sounds"))
    assert photos.modalities == ["image", "text"] and sounds.modalities == ["audio", "text"]
    asked = ["model=tiny:all", "tune=full", "train.lr=1e-3", "train.epochs=16", f"run.dir={tmp_path / 'run'}"]
    out = mmtune.train(RECIPE, [*asked, *data], quiet=True)
    before = mmtune.evaluate("tiny:all", str(tmp_path / "val"))
    for direction in ("image->audio", "audio->image"):
        assert direction in out["metrics"]["untrained_directions"]
        got = out["metrics"]["directions"][direction]["metrics"]["hit@1"]
        assert got > 0.4 and before.metric("hit@1", direction) < 0.25, (direction, got)  # 12 states: 0.08 by chance


def test_pairs_in_any_combination(tmp_path):
    """A dataset with three modalities, one with two, and a pair that only some rows have."""
    all_three, two = corpora.packed(tmp_path, 12, 0), corpora.packed(tmp_path, 12, 1, ("image", "audio"))
    recipe = {
        "model": "tiny:all",
        "data": {"train": [all_three, two]},
        "pairs": [["image", "audio"], ["text", "audio"]],
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": str(tmp_path / "run")},
    }
    out = mmtune.train(recipe, quiet=True)
    assert out["pairs"] == 24
    result = mmtune.evaluate(out["artifact"], corpora.packed(tmp_path, 12, 2))
    assert result.untrained_directions == ["image->text", "text->image"]
