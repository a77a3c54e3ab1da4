"""Checks before the first step: each mistake in an objective is one line that names the recipe's key and the column."""

import csv

import pytest
import yaml

import mmtune
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.errors import DataError, RecipeError, TrainingError
from tests.support import corpora
from tests.support.data_helpers import write_csv


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("demands")


@pytest.fixture(scope="module")
def rows(root):
    with open(corpora.source(root / "src", 16, 0, ("image", "text"))) as f:
        return list(csv.DictReader(f))


def packed(root, rows, name, **columns):
    changed = [r | {k: value(i) for k, value in columns.items()} for i, r in enumerate(rows)]
    pack(write_csv(root / "src" / f"{name}.csv", changed), root / name)
    return str(root / name)


def recipe(root, data, **keys):
    return {
        "model": "tiny:clip",
        "data": {"train": data},
        "pairs": [["image", "text"]],
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": str(root / "run")},
    } | keys


GRADED = {"loss": "info_nce", "weights": "score"}


@pytest.mark.parametrize(
    "name,score,term,says",
    [
        ("none", None, {"loss": "cosent"}, r"column: \S+none: no row has a column 'score'"),
        ("none", None, GRADED | {"weights": "w"}, r"weights: \S+none: no row has a column 'w'"),
        ("high", lambda i: 0.5 if i < 15 else 7, {"loss": "mse"}, "column: .*'score' of row '0-015' is 7, .*above 1"),
        ("gap", lambda i: "" if i == 3 else 0.5, {"loss": "mse"}, "column: .*'0-003' is nan, which is not a number"),
        ("wide", lambda i: "inf", {"loss": "cosent"}, "column: column 'score' of row '0-000' is inf, which is not"),
        ("word", lambda i: "good", {"loss": "cosine"}, r"column: \S+word: column 'score' of .* is 'good', not a number"),
        ("less", lambda i: -1, GRADED, "weights: .* is -1, which is below 0"),
        ("zero", lambda i: 0, GRADED, "weights: .* is 0 in every row that is used; nothing"),
    ],
)
def test_columns(root, rows, name, score, term, says):
    data = packed(root, rows, name, **({"score": score} if score else {}))
    with pytest.raises((DataError, RecipeError), match=rf"^objective\[0\].{says}"):
        mmtune.train(recipe(root, data, objective=[term]), quiet=True)
    assert not (root / "run" / "checkpoints").exists()


def test_rows_that_no_term_uses_may_lack_the_value(root, rows):
    data = packed(root, rows, "some", score=lambda i: 0.5 if i else "", text=lambda i: rows[i]["text"] if i else "")
    out = mmtune.train(recipe(root, data, objective=[{"loss": "mse"}], run={"dir": str(root / "some-run")}), quiet=True)
    assert out["pairs"] == 15


@pytest.mark.parametrize(
    "text,batches,term,says",
    [
        (lambda i: f"a thing {i}", "random", {}, None),
        (lambda i: f"a thing {i}", "spread", {}, "no batch has a positive pair for"),
        (lambda i: f"a thing of group {i % 6}", "random", {}, "no batch has a positive pair for"),
        (lambda i: f"a thing {i}", "random", {"positives": "mask"}, "only a row's own pair would be positive"),
    ],
)
def test_within_one_modality_some_batch_must_hold_two_values_of_a_group(root, rows, text, batches, term, says):
    name = f"within-{batches}-{len(text(0))}-{len(term)}"
    data = packed(root, rows[:12], name, text=text)
    asked = recipe(root, data, pairs=[["text", "text"]], objective=[{"loss": "info_nce", **term}])
    asked |= {"data": {"train": data, "batches": batches}, "run": {"dir": str(root / f"run-{name}")}}
    if says is None:
        assert mmtune.train(asked, quiet=True)["steps"] == 2
    else:
        with pytest.raises(RecipeError, match=rf"^objective\[0\].*{says}") as e:
            mmtune.train(asked, quiet=True)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("loss", ["auto", "triplet", "sigmoid"])
def test_a_run_in_which_no_query_has_a_negative_is_refused(root, rows, loss):
    data = packed(root, rows, "alike", text=lambda i: "one caption")
    asked = recipe(root, data, objective=[{"loss": loss}], run={"dir": str(root / f"alike-{loss}")})
    with pytest.raises(RecipeError, match=r"^objective\[0\]: no batch has a negative for \[image, text\]"):
        mmtune.train(asked, quiet=True)
    asked["memory"] = {"size": 8}  # earlier batches may hold some
    assert mmtune.train(asked, quiet=True)["steps"] == 2


def test_the_command_line_prints_one_line(root, rows, capsys):
    data = packed(root, rows, "line")
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(root, data)))
    assert main(["train", str(path), "objective=[{loss: cosent, column: grade}]", "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("mmtune train: objective[0].column: ") and err.count("\n") == 1 and "'grade'" in err


def test_a_run_whose_recipe_lacks_newer_keys_is_resumed(root, rows):
    data = packed(root, rows, "old")
    asked = recipe(root, data, run={"dir": str(root / "old-run")})
    first = mmtune.train(asked, quiet=True)
    path = root / "old-run" / "recipe.yaml"
    document = yaml.safe_load(path.read_text())
    for key in ("prompts", "mining", "gate"):
        del document[key]
    del document["train"]["ema"]
    path.write_text(yaml.safe_dump(document))
    assert mmtune.train(asked, resume=True, quiet=True)["fingerprint"] == first["fingerprint"]
    document["train"]["lr"] = 0.5
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(TrainingError, match="the run to resume has another value of train.lr"):
        mmtune.train(asked, resume=True, quiet=True)
