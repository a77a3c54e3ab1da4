"""Models that were trained on streamed rows know how their captions were worded, in bounded memory."""

import shutil
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

import mmtune
from mmtune.data.identity_labels import stable_label
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataWarning
from mmtune.evaluation.tasks.training_wording import wording_note
from mmtune.model.artifact import label_sample
from mmtune.model.artifact.label_sample import LabelSample, in_sample
from mmtune.model.artifact.trained_rows import known_contents, sample_labels, trained_on, union
from mmtune.training.loop import Trainer
from tests.support import corpora


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("worded")
    pack(corpora.source(root / "source", 24, 0, ("image", "text")), root / "packed", shard_size="20KB")
    return root


def recipe(root, run, **train):
    return {
        "model": "tiny:clip",
        "data": {"train": str(root / "packed"), "read": "stream", "shuffle_buffer": 8, "workers": 1},
        "train": {"epochs": 1, "batch_size": 6, "precision": "fp32", **train},
        "run": {"dir": str(run)},
    }


def test_streamed_training_stores_the_wording_and_zero_shot_warns(root, tmp_path):
    mmtune.train(recipe(root, tmp_path / "run"), quiet=True)
    artifact, train = str(tmp_path / "run" / "artifact"), open_data(str(root / "packed"))
    stored = load_file(tmp_path / "run" / "artifact" / "trained_on.safetensors")
    assert stored.keys() == {"text:sample", "text:level"} and stored["text:level"] == [0]
    assert stored["text:sample"].tolist() == np.unique(train.labels["text"]).tolist() and len(stored["text:sample"]) == 6
    val = corpora.packed(tmp_path, 12, 1, ("image", "text"))
    with pytest.warns(DataWarning, match="no class name is worded like a caption"):
        mmtune.evaluate(artifact, val, task="zero_shot")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        mmtune.evaluate(artifact, val, task="zero_shot", prompts=["a {} square"])
        mmtune.evaluate(artifact, str(root / "packed"))  # it tells nothing about rows, so none is refused
    squares = {c: [f"{c} square"] for c in corpora.COLOURS}
    assert 'with --prompt "a {}" 100% of the names' in wording_note(mmtune.load(artifact), "text", squares, ())


def test_a_run_that_is_stopped_and_resumed_stores_the_same(root, tmp_path, monkeypatch):
    mmtune.train(recipe(root, tmp_path / "whole"), quiet=True)
    step = Trainer.step

    def interrupted(self, batch):
        if self.state.step == 2:
            raise KeyboardInterrupt
        return step(self, batch)

    options = {"checkpoint_every": 1}
    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(recipe(root, tmp_path / "parts", **options), quiet=True)
    monkeypatch.setattr(Trainer, "step", step)
    mmtune.train(recipe(root, tmp_path / "parts", **options), resume=True, quiet=True)
    whole, parts = (load_file(tmp_path / name / "artifact" / "trained_on.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all((whole[k] == parts[k]).all() for k in whole)


def test_the_sample_is_bounded_uniform_and_does_not_depend_on_the_order():
    labels = np.array([stable_label(f"caption {i}".encode()) for i in range(20_000)])
    one, two = LabelSample(size=1000), LabelSample(size=1000)
    for part in np.array_split(labels, 40):
        one.add(np.concatenate([part, part[:10], [0]]))
    two.add(labels[::-1])
    assert one.labels.tolist() == two.labels.tolist() == sorted(labels[in_sample(labels, one.level)].tolist())
    assert one.level == two.level == 5 and 500 < len(one.labels) <= 1000
    assert abs(np.isin(labels[:10_000], one.labels).sum() - 312) < 80  # a part that came first has no larger share
    merged = union([sample_labels({"text": LabelSample(labels[:300])}), sample_labels({"text": one}), None])
    assert merged["text:level"] == [5] and merged["text:sample"].tolist() == one.labels.tolist()


def test_only_names_that_could_be_in_the_sample_are_judged(root, tmp_path, monkeypatch):
    """Of 4,000 captions a sixteenth is kept: names that were captions are mostly missing, which must give no warning."""
    names = [f"thing {i}" for i in range(400)]
    captions = [f"a photo of a {n}" for n in names] + [f"something else {i}" for i in range(3600)]
    sample = LabelSample(np.array([stable_label(text_key(c)) for c in captions]), size=256)
    assert sample.level == 4 and len(sample.labels) < 300
    mmtune.load("tiny:clip").save(tmp_path / "a", trained_on=sample_labels({"text": sample}))
    model = mmtune.load(tmp_path / "a")
    classes = {n: [n] for n in names}
    assert wording_note(model, "text", classes, ["a photo of a {}"]) is None
    assert 'with --prompt "a photo of a {}" 100% of the names' in wording_note(model, "text", classes, ())
    few = {n: [n] for n in names[:4]}
    assert wording_note(model, "text", few, ()) is None  # too few names could be in the sample
    mmtune.load(tmp_path / "a").save(tmp_path / "b", trained_on={"id": np.array([1, 2]), "text": np.array([7, 7])})
    both = trained_on(tmp_path / "b")
    assert both["text"].tolist() == [7] and both["text:rows"] == [2] and both["text:level"] == [4]
    known, level = known_contents(both, "text")
    assert level == 4 and set(known.tolist()) == {7, *sample.labels.tolist()}


def text_key(text):
    return mmtune.modalities.get("text").content_key(text.encode())


def test_a_checkpoint_of_an_older_version_leaves_the_wording_unknown(root, tmp_path, monkeypatch):
    import torch

    mmtune.train(recipe(root, tmp_path / "run", checkpoint_every=1), quiet=True)
    path = tmp_path / "run" / "checkpoints" / "last" / "state.pt"
    tensors = torch.load(path, weights_only=True)
    del tensors["texts"]
    torch.save(tensors, path)
    shutil.rmtree(tmp_path / "run" / "artifact")
    mmtune.train(recipe(root, tmp_path / "run", checkpoint_every=1), resume=True, quiet=True)
    assert trained_on(tmp_path / "run" / "artifact") is None
    assert label_sample.MAX_LABELS == 131_072  # as the docs say
