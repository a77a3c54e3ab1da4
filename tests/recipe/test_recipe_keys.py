"""The recipe's JSON Schema and the page of all keys are made from the models."""

import json
from pathlib import Path

import pytest
import yaml

from mmtune.cli import main
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.recipe_keys import json_schema, recipe_keys_page

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_init_writes_the_schema_that_every_recipe_of_the_project_fulfils(tmp_path, capsys):
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema checks the schema")
    assert main(["init", "--schema", str(tmp_path / "s.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": str(tmp_path / "s.json")}
    schema = json.loads((tmp_path / "s.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert len(RECIPES) >= 4
    for path in RECIPES:
        assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == [], path
    filled = Recipe.parse({"model": "tiny:clip", "data": {"train": "x"}, "augment": {"image": {"flip": True}}})
    assert list(validator.iter_errors(filled.model_dump(mode="json"))) == []
    assert list(validator.iter_errors({"include": "parts/a.yaml", "data": {"val": "x"}})) == []
    for wrong in (
        {"data": {"train": "x"}},
        {"model": "m", "data": {"val": "x"}},
        {"include": 3, "model": "m"},
        {"include": ["a.yaml"], "data": {"tran": "x"}},
        {"model": "m", "data": {"train": "x"}, "trian": {}},
        {"model": "m", "data": {"train": "x"}, "objective": [{"loss": "info_nce", "margin": 1}]},
        {"model": "m", "data": {"train": "x"}, "tune": "lroa"},
        {"model": "m", "data": {"train": "x"}, "augment": {"image": {"crops": 1}}},
    ):
        assert list(validator.iter_errors(wrong)), wrong


def test_init_refuses_what_is_there_and_nothing_to_write(tmp_path, capsys):
    (tmp_path / "s.json").write_text("{}")
    assert main(["init", "--schema", str(tmp_path / "s.json")]) == 2 and "exists already" in capsys.readouterr().err
    assert main(["init", "--schema", str(tmp_path / "s.json"), "--force"]) == 0
    assert main(["init"]) == 2 and "name a DIR" in capsys.readouterr().err


def test_the_page_of_all_keys_is_the_generated_one():
    page = recipe_keys_page()
    assert (ROOT / "docs" / "recipe_keys.md").read_text() == page, "python -m mmtune.recipe.recipe_keys > docs/recipe_keys.md"
    for key in ("window_pooling", "negatives_per_query", "cpu_kernels", "retention_weight", "layer_decay", "hub_cap", "mixup"):
        assert f"| `{key}` |" in page
    assert json_schema()["properties"]["train"]
