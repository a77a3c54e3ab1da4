"""`mmtune recipe`, and recipes that include files."""

import json

import pytest
import yaml

import mmtune
from mmtune.cli import main
from mmtune.errors import RecipeError
from tests.support.docs_helpers import ROOT

GIVEN = ["model=tiny:clip", "data.train=a", "data.val=b"]
RECIPE = str(ROOT / "recipes" / "catalog_images.yaml")


def out(capsys, *argv):
    status = main(["recipe", *argv])
    return status, capsys.readouterr()


def test_validate_and_show(capsys):
    assert out(capsys, "validate", RECIPE, *GIVEN)[0] == 0
    status, said = out(capsys, "validate", RECIPE, *GIVEN, "train.epoch=3")
    assert status == 2 and "train.epoch" in said.err and "epochs" in said.err
    status, said = out(capsys, "show", RECIPE, *GIVEN, "train.lr=0.5")
    shown = yaml.safe_load(said.out)
    assert (
        status == 0
        and shown["train"]["lr"] == 0.5
        and mmtune.Recipe.read(shown) == mmtune.Recipe.load(RECIPE, [*GIVEN, "train.lr=0.5"])
    )


def test_diff_and_docs(capsys, tmp_path):
    (tmp_path / "b.yaml").write_text(f"include: {RECIPE}\ntrain: {{epochs: 3}}\n")
    status, said = out(capsys, "diff", RECIPE, str(tmp_path / "b.yaml"))
    assert status == 0 and said.out.strip() == "train.epochs: 12 -> 3"
    assert out(capsys, "diff", RECIPE, RECIPE)[1].out.strip() == "no differences"
    status, said = out(capsys, "docs", "train.lr")
    assert status == 0 and said.out.startswith("train.lr: ") and "number" in said.out
    assert "`epochs`" in out(capsys, "docs", "train")[1].out
    assert "`model`" in out(capsys, "docs", "--json")[1].out
    status, said = out(capsys, "docs", "train.epoch")
    assert status == 2 and "train.epochs" in said.err
    assert out(capsys, "diff", RECIPE)[0] == 2


def test_a_recipe_is_composed_of_parts(tmp_path, capsys):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "data.yaml").write_text("data: {train: a, val: b}\npairs: [[text, image]]\n")
    (tmp_path / "parts" / "short.yaml").write_text("include: data.yaml\ntrain: {epochs: 2, lr: 0.1}\nrun: {dir: runs/x}\n")
    (tmp_path / "own.yaml").write_text("include: [parts/short.yaml]\nmodel: tiny:clip\ntrain: {lr: 0.2}\n")
    recipe = mmtune.Recipe.load(tmp_path / "own.yaml", ["train.epochs=5"])
    assert (recipe.train.epochs, recipe.train.lr, recipe.run.dir) == (5, 0.2, "runs/x") and recipe.model == "tiny:clip"
    status, said = out(capsys, "show", str(tmp_path / "own.yaml"), "--json")
    assert status == 0 and "include" not in json.loads(said.out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: none.yaml", "include: no such file: none.yaml"),
        ("include: own.yaml", "include: own.yaml includes itself"),
        ("include: {a: b}", "write a path, or a list of paths"),
    ],
)
def test_a_broken_include_is_one_line(text, message, tmp_path):
    (tmp_path / "own.yaml").write_text(text + "\nmodel: tiny:clip\n")
    with pytest.raises(RecipeError, match=message):
        mmtune.Recipe.load(tmp_path / "own.yaml")


def test_parts_that_include_each_other_are_found(tmp_path):
    (tmp_path / "a.yaml").write_text("include: b.yaml\n")
    (tmp_path / "b.yaml").write_text("include: a.yaml\n")
    with pytest.raises(RecipeError, match="includes itself"):
        mmtune.Recipe.load(tmp_path / "a.yaml")
