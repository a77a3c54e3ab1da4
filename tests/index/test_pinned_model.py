"""Models in Hugging Face's format: the same weights with another tokenizer, preprocessing or pooling are another
embedding space. An edited pinned artifact is refused; an edited source is another model, which reuses no vector of the first."""

import json
import re
import shutil

import pytest

from mmtune.errors import DataError, ModelError
from mmtune.index.collection import Collection
from mmtune.model.artifact import load
from tests.support import checkpoints
from tests.support.corpora import packed


def edit(directory, pattern, change):
    """`change` the JSON document of the one file that matches; its name."""
    (file,) = directory.rglob(pattern)
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return file.name


def swap_two_words(document):
    words = document["model"]["vocab"]
    words["a</w>"], words["b</w>"] = words["b</w>"], words["a</w>"]


def other_mean(document):
    document.get("image_processor", document)["image_mean"] = [0.1, 0.2, 0.3]


def other_resampling(document):
    document.get("image_processor", document)["resample"] = 0


def shorter_texts(document):
    document["model_max_length"] = 4


EDITS = {
    "two words swapped": ("tokenizer.json", swap_two_words),
    "texts cut earlier": ("tokenizer_config.json", shorter_texts),
    "another mean": ("pro*config.json", other_mean),
    "another resampling": ("pro*config.json", other_resampling),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A collection of a CLIP, v1 live; and that CLIP's directory."""
    root = tmp_path_factory.mktemp("clip")
    checkpoints.clip(root / "model")
    with Collection(root / "coll", create=True) as coll:
        coll.build(f"hf:{root / 'model'}", packed(root / "data", 12, columns=("image", "text")), quiet=True)
        coll.promote("v1")
    return root


@pytest.mark.parametrize("name", EDITS)
def test_the_pinned_files_were_edited(built, tmp_path, name):
    shutil.copytree(built / "coll", tmp_path / "coll")
    coll = Collection(tmp_path / "coll")
    pinned = coll.path / "models" / coll.layout.record("v1")["fingerprint"]
    file = edit(pinned / "parts", *EDITS[name])
    with pytest.raises(ModelError, match=rf"what differs: .*files: 1 of \d+ \(0/{re.escape(file)}\)"):
        coll.search(text="a red square")


@pytest.mark.parametrize("name", EDITS)
def test_the_source_was_edited(built, tmp_path, name):
    """v1 keeps its pinned model; the edited one is another model, all of whose vectors are embedded anew."""
    shutil.copytree(built / "coll", tmp_path / "coll")
    shutil.copytree(built / "model", tmp_path / "model")
    edit(tmp_path / "model", *EDITS[name])
    with Collection(tmp_path / "coll") as coll:
        before = coll.search(text="A red square").results
        done = coll.build(f"hf:{tmp_path / 'model'}", quiet=True)
        assert done["fingerprint"] != coll.layout.record("v1")["fingerprint"]
        assert done["embedded"] == len(coll.catalog)
        assert coll.search(text="A red square").results == before
        edited = load(f"hf:{tmp_path / 'model'}").encode(text=["A red square"])
        with pytest.raises(ModelError, match="not comparable"):
            coll.search_vectors(edited, done["fingerprint"])
        with pytest.raises((ModelError, DataError)):
            coll.search_vectors(edited, "")


def test_another_pooling_of_the_same_weights(tmp_path):
    one, two = (load(f"hf:{checkpoints.text_encoder(tmp_path / how, how)}") for how in ("mean", "cls"))
    assert all((a == b).all() for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert one.fingerprint != two.fingerprint
