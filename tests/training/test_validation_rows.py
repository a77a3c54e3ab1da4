"""Scores on rows that a model was trained on: refused by one rule in training, eval, compare and report, unless allowed."""

import csv

import numpy as np
import pytest
import yaml

import mmtune
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.model.artifact.trained_rows import trained_on
from tests.support import corpora
from tests.support.data_helpers import write_csv


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("overlap")


@pytest.fixture(scope="module")
def data(root):
    """train: 12 rows; val: 4 rows, of which the first is the third of train with another id; other: 8 rows of neither."""
    corpora.source(root / "src", 24, 0, ("image", "text"))
    with open(corpora.source(root / "src", 24, 0, ("image", "text"))) as f:
        rows = [r | {"text": f"{r['text']} number {i}"} for i, r in enumerate(csv.DictReader(f))]
    parts = {"train": rows[:12], "val": [rows[2] | {"id": "copy"}, *rows[12:15]], "other": rows[16:24]}
    for name, part in parts.items():
        pack(write_csv(root / "src" / f"{name}.csv", part), root / name)
    return {name: str(root / name) for name in parts}


@pytest.fixture(scope="module")
def trained(root, data):
    keys = recipe(root, data, val=data["other"]) | {"run": {"dir": str(root / "trained")}}
    return mmtune.train(keys, quiet=True)["artifact"]


def recipe(root, data, **blocks):
    return {
        "model": "tiny:clip",
        "data": {"train": data["train"], **blocks},
        "train": {"epochs": 1, "batch_size": 6, "precision": "fp32"},
        "run": {"dir": str(root / "run")},
    }


def run(capsys, *argv):
    status = main([str(a) for a in argv])
    return status, capsys.readouterr().err


@pytest.mark.parametrize("key", ["val", "retention"])
def test_train_says_how_many_and_which_before_the_first_step(root, data, capsys, key):
    blocks = {"val": data["other"], key: data["val"]}
    path = root / f"{key}.yaml"
    path.write_text(yaml.safe_dump(recipe(root, data, **blocks)))
    status, err = run(capsys, "train", path, "--quiet", f"run.dir={root / key}")
    assert status == 2 and err.count("\n") == 1
    assert f"data.{key}: 1 of the 4 rows of {data['val']} are trained on (row 'copy': its" in err
    assert "data.allow_trained=true" in err
    assert not (root / key / "checkpoints").exists()
    status, err = run(capsys, "train", path, "--quiet", f"run.dir={root / key}", "data.allow_trained=true")
    assert status == 0 and f"data.{key}: 1 of the 4 rows" in err


def test_train_knows_the_rows_of_its_base(root, data, trained, capsys):
    path = root / "base.yaml"
    path.write_text(yaml.safe_dump(recipe(root, data | {"train": data["other"]}, val=data["val"]) | {"model": trained}))
    status, err = run(capsys, "train", path, "--quiet", f"run.dir={root / 'base'}")
    assert status == 2 and "1 of the 4 rows" in err and "were trained on by the base model (row 'copy'" in err


def test_every_command_refuses_and_allows_them(root, data, trained, capsys):
    page = root / "report.html"
    for argv in (
        ["eval", trained, data["val"]],
        ["eval", trained, data["train"], "--task", "knn"],
        ["compare", "tiny:clip", trained, data["val"]],
        ["compare", "tiny:clip", trained, data["other"], "--retention", data["val"]],
        ["compare", "tiny:clip", trained, data["other"], "--general", data["train"]],
        ["report", "--base", "tiny:clip", "--candidate", trained, "--data", data["val"], "--out", page],
    ):
        status, err = run(capsys, *argv)
        lines = [line for line in err.splitlines() if "was trained on" in line]
        assert status == 2 and len(lines) == 1 and "--allow-trained" in lines[0], argv
        status, err = run(capsys, *argv, "--allow-trained")
        assert status in (0, 1) and "was trained on" in err, (argv, err)


def test_row_numbers_as_ids_do_not_make_rows_equal(root, capsys):
    """Two files without an id column both have the ids 0, 1, ...; only their contents tell the rows apart."""
    with open(corpora.source(root / "src", 24, 0, ("image", "text"))) as f:
        rows = [r | {"id": str(i % 12), "text": f"{r['text']} number {i}"} for i, r in enumerate(csv.DictReader(f))]
    for name, part in (("first", rows[:12]), ("second", rows[12:])):
        pack(write_csv(root / "src" / f"{name}.csv", part), root / name)
    both = {"train": str(root / "first")}
    out = mmtune.train(recipe(root, both, val=str(root / "second")) | {"run": {"dir": str(root / "numbers")}}, quiet=True)
    assert out["steps"] == 2
    assert run(capsys, "eval", out["artifact"], root / "second")[0] == 0


def test_ids_of_a_second_training_set_are_stored_as_they_are(root, data):
    """The labels that keep equal ids of two sets apart in training are not those that evaluation looks for."""
    sets = recipe(root, {"train": [data["train"], data["other"]]}) | {"run": {"dir": str(root / "two")}}
    stored = trained_on(mmtune.train(sets, quiet=True)["artifact"])["id"]
    own = [mmtune.open_data(data[name]).labels["id"] for name in ("train", "other")]
    assert sorted(stored) == sorted(np.concatenate(own))
