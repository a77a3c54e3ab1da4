"""`Model.encode` of plain values, `similarity` and `save`."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import mmtune
from mmtune.errors import ModelError

TEXTS = ["a red bag", "a blue bag"]


@pytest.fixture(scope="module")
def model():
    return mmtune.load("tiny:all")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    import soundfile

    folder = tmp_path_factory.mktemp("files")
    PIL.Image.new("RGB", (40, 30), "red").save(folder / "red.png")
    soundfile.write(folder / "hum.wav", np.sin(np.arange(8000) / 9).astype(np.float32), 8000)
    return folder


def test_the_modality_of_plain_values_is_clear_from_their_type(model, files):
    picture, sound = PIL.Image.open(files / "red.png"), (np.sin(np.arange(8000) / 9).astype(np.float32), 8000)
    for values, name in [
        (TEXTS, "text"),
        ([picture], "image"),
        ([np.zeros((8, 8, 3), np.uint8)], "image"),
        ([files / "red.png", picture], "image"),
        ([files / "hum.wav"], "audio"),
        ([sound], "audio"),
    ]:
        np.testing.assert_array_equal(model.encode(values), model.encode(**{name: values}))
    np.testing.assert_array_equal(model.encode("a red bag"), model.encode(text=["a red bag"])[0])
    np.testing.assert_array_equal(model.encode(sound), model.encode(audio=[sound])[0])
    without_text = mmtune.load("tiny:image+audio")
    path = str(files / "red.png")  # a caption for a model with a text tower, a path for one without
    np.testing.assert_array_equal(without_text.encode([path]), without_text.encode(image=[path]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["red.png"], "encode: 'red.png' may be image or text; write encode(image=[...]) or encode(text=[...])"),
        (["red", Path("red.png")], "encode: values of several modalities in one list; write encode(image=[...]) or"),
        ([3.5], "encode: no tower accepts a value of type float by its type; write encode("),
        ([], "encode: the modality of an empty list cannot be inferred; write encode("),
        ([b"bytes"], "encode: no tower accepts a value of type bytes by its type"),
    ],
)
def test_an_unclear_modality_is_one_line(model, values, message):
    with pytest.raises(ModelError) as e:
        model.encode(values)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_values_come_by_name_or_without_never_both(model):
    with pytest.raises(ModelError, match="both without and with a modality"):
        model.encode(TEXTS, text=TEXTS)


def test_similarity_is_the_cosine_of_every_pair(model):
    x, y = np.random.default_rng(0).normal(size=(3, 8)), np.random.default_rng(1).normal(size=(2, 8))
    expected = [[np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for b in y] for a in x]
    np.testing.assert_allclose(model.similarity(x, y), expected, atol=1e-6)
    assert model.similarity(x[0], y).shape == (1, 2)
    vectors = model.encode(TEXTS)
    np.testing.assert_allclose(np.diag(model.similarity(vectors, vectors)), 1, atol=1e-6)
    with pytest.raises(ModelError, match=r"got \(3, 8\) and \(2, 7\)"):
        model.similarity(x, y[:, :7])


def test_save_writes_what_load_reads(model, tmp_path):
    mark = model.save(tmp_path / "saved", info={"base": "tiny:all"})
    again = mmtune.load(tmp_path / "saved")
    assert again.fingerprint == mark == model.fingerprint and again.info["base"] == "tiny:all"
    np.testing.assert_array_equal(again.encode(TEXTS), model.encode(TEXTS))


def test_save_never_deletes_other_files(model, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.txt").write_text("mine")
    with pytest.raises(ModelError, match=r"photos: contains files that are not an artifact's \(one.txt\)"):
        model.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "one.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert model.save(tmp_path / "empty") == model.save(tmp_path / "empty") == model.fingerprint
    (tmp_path / "empty" / "notes.md").write_text("mine")  # beside the files of an artifact
    (tmp_path / "empty" / ".DS_Store").write_bytes(b"")
    with pytest.raises(ModelError, match=r"not an artifact's \(notes.md\)"):
        model.save(tmp_path / "empty")
    with pytest.raises(ModelError, match="notes.md: this is a file, not a directory; save into a new"):
        model.save(tmp_path / "empty" / "notes.md")
    assert (tmp_path / "empty" / "notes.md").read_text() == "mine"
