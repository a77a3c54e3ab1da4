"""Class names that are worded otherwise than the training captions are named, with the template that fits."""

import warnings

import numpy as np
import pytest

import mmtune
from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataWarning
from mmtune.evaluation.tasks.training_wording import wording_note
from mmtune.recipe.prompts_block import parse_prompts
from tests.support import corpora


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A model "trained" on the captions "a red square", ..., as artifacts record it."""
    root = tmp_path_factory.mktemp("wording")
    data = open_data(corpora.packed(root, 12, 0, ("image", "text")))
    trained = {"id": data.labels["id"], "text": data.labels["text"]}
    mmtune.load("tiny:clip").save(root / "artifact", trained_on={k: np.asarray(v) for k, v in trained.items()})
    return str(root / "artifact"), corpora.packed(root, 12, 1, ("image", "text"))


def test_the_wording_is_recognised(artifact):
    model = mmtune.load(artifact[0])
    colours = {c: [c] for c in corpora.COLOURS}
    squares = {c: [f"{c} square"] for c in corpora.COLOURS}
    assert "no common template is, either" in wording_note(model, "text", colours, ())
    assert wording_note(model, "text", colours, ["a {} square"]) is None
    assert 'with --prompt "a {}" 100% of the names' in wording_note(model, "text", squares, ())
    assert 'with --prompt "a {}"' in wording_note(model, "text", squares, ["one {}"])
    assert wording_note(model, "text", {c: [f"a {c} square"] for c in corpora.COLOURS}, ()) is None
    assert wording_note(mmtune.load("tiny:clip"), "text", colours, ()) is None  # its captions are not known
    mixed = {c: [c if i else f"a {c} square"] for i, c in enumerate(corpora.COLOURS)}
    few = f"only {1 / len(mixed):.0%} of the class names are worded like a caption"
    assert few in wording_note(model, "text", mixed, ()) and "no common template" in wording_note(model, "text", mixed, ())
    prompted = model.with_prompts(parse_prompts({"text": {"zero_shot": ["one {}"]}}))
    assert wording_note(prompted, "text", colours, ()) is None


def test_evaluation_and_prediction_warn(artifact):
    path, data = artifact
    with pytest.warns(DataWarning, match="no class name is worded like a caption"):
        mmtune.evaluate(path, data, task="zero_shot", allow_trained=True)
    with pytest.warns(DataWarning, match="no class name is worded like a caption"):
        mmtune.predict(path, data, task="zero_shot", classes=["red", "green"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        mmtune.predict(path, data, task="zero_shot", classes=["red", "green"], prompts=["a {} square"])
