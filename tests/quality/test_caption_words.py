"""Captions that an augmentation makes wrong: counted and shown before training, and by doctor."""

import csv
import itertools

import pytest
import yaml

import mmtune
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.modalities import label_words
from mmtune.quality.caption_words import find_label_words
from tests.support import corpora
from tests.support.data_helpers import write_csv

CAPTIONS = {
    "arrow": ["an arrow to the Left", "an arrow to the right", "copyright notice", "turned clockwise", "lefty"],
    "colour": ["a red shoe", "a shoe of tired leather", "a bright lamp", "GREY box", "a blackbird"],
    "sound": ["a loud bearing", "motor at 1797 rpm", "quiet fan", "cloudy sky", "slow pump"],
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("words")
    with open(corpora.source(root / "src", 10, 0)) as f:
        rows = list(csv.DictReader(f))
    out = {"root": root}
    for name, captions in CAPTIONS.items():
        changed = [r | {"text": c, "group": str(i)} for i, (r, c) in enumerate(zip(rows, itertools.cycle(captions)))]  # noqa: B905
        pack(write_csv(root / "src" / f"{name}.csv", changed), root / name)
        out[name] = root / name
    return out


@pytest.mark.parametrize(
    "name,modality,option,wrong",
    [
        ("arrow", "image", "flip", [0, 1, 3]),
        ("arrow", "image", "color", []),
        ("colour", "image", "color", [0, 2, 3]),
        ("colour", "image", "grey", [0, 3]),
        ("sound", "audio", "gain_db", [0, 2]),
        ("sound", "audio", "speed", [1, 4]),
        ("sound", "audio", "PitchShift", [1]),
        ("arrow", "image", "RandomHorizontalFlip", [0, 1, 3]),
        ("sound", "audio", "shift", []),
    ],
)
def test_whole_words_in_any_case(packed, name, modality, option, wrong):
    data = mmtune.open_data(str(packed[name]))
    found = [sorted({i % 5 for i in m.rows}) for m in find_label_words(data, {modality: {option: True}})]
    assert found == ([wrong] if wrong else [])
    assert find_label_words(data, {modality: {option: 0}}) == []


def test_train_asks_before_the_first_step(packed, tmp_path, capsys):
    keys = {
        "model": "tiny:clip",
        "pairs": [["image", "text"]],
        "data": {"train": str(packed["arrow"])},
        "augment": {"image": {"flip": True}},
        "train": {"epochs": 1, "batch_size": 5, "precision": "fp32"},
        "run": {"dir": str(tmp_path / "run")},
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(keys))
    assert main(["train", str(tmp_path / "r.yaml"), "--quiet"]) == 0
    line = "mmtune: augment.image.flip can make 6 of 10 captions wrong, which say left, right, clockwise "
    assert line in capsys.readouterr().err.replace("clockwise (row '0-000': 'an arrow to the Left')", "clockwise ")
    assert main(["train", str(tmp_path / "r.yaml"), "--quiet", f"run.dir={tmp_path / 'off'}", "augment.image.flip=false"]) == 0
    assert "captions wrong" not in capsys.readouterr().err


def test_doctor_lists_them(packed):
    found = {f.code: f for f in mmtune.doctor(str(packed["sound"])).findings if f.code.startswith("augmentation-words")}
    gain = found["augmentation-words-gain_db"]
    assert gain.severity == "note" and gain.count == 4 and "loud, quiet; augment.audio: gain_db" in gain.message
    assert gain.examples[0] == "0-000 (a loud bearing)"


def test_words_of_another_language(packed, monkeypatch):
    monkeypatch.setattr(label_words, "LABEL_WORDS", {m: dict(o) for m, o in label_words.LABEL_WORDS.items()})
    label_words.register_label_words("image", "flip", ["Shoe"])
    (match,) = find_label_words(mmtune.open_data(str(packed["colour"])), {"image": {"flip": True}})
    assert match.words == ["shoe"] and len(match.rows) == 4
