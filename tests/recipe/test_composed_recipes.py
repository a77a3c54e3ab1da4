"""The recipes of the project are composed of shared parts, and mean what was measured."""

import json

import pytest
import yaml

from mmtune.cli import main
from mmtune.recipe.recipe_file import blank_keys, read_document
from tests.support.docs_helpers import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PARTS = sorted((ROOT / "recipes" / "parts").glob("*.yaml"))
MEASURED = json.loads((ROOT / "tests" / "recipe" / "measured_recipes.json").read_text())
"""Recipe -> its composed keys and values when its header's figures were measured."""


def leaves(value):
    """The number of values in nested lists and mappings."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 1 if children is None else sum(map(leaves, children))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_what_its_header_measured(path):
    """A change here, perhaps by a part, makes the figures in the recipe's header out of date: measure again, then write the file anew."""
    assert read_document(path) == MEASURED[path.stem]


def test_no_block_stands_in_two_files():
    """Blocks of at least two values, such as `train: {...}` or `objective: [...]`, that are equal belong into a part."""
    seen = {}
    for path in [*RECIPES, *PARTS]:
        for key, block in yaml.safe_load(path.read_text()).items():
            blank = isinstance(block, dict) and set(map(str, block.values())) == {"???"}
            if key in ("include", "pairs") or leaves(block) < 2 or blank:
                continue
            where = seen.setdefault((key, json.dumps(block, sort_keys=True)), path.name)
            assert where == path.name, f"{where} and {path.name} have the same block {key}"
    assert len(seen) > 10


def test_every_part_is_used_and_says_what_it_is():
    text = "".join(p.read_text() for p in [*RECIPES, *PARTS])
    for part in PARTS:
        assert part.read_text().startswith("# ") and text.count(f"{part.name}") >= 1, part
    assert set(MEASURED) == {p.stem for p in RECIPES} and len(PARTS) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_show_prints_the_composed_recipe(path, capsys):
    assert main(["recipe", "show", str(path)]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out) == MEASURED[path.stem] and "include" not in yaml.safe_load(out)
    missing = set(out.rstrip().rpartition("defaults: ")[2].split(", "))
    assert missing == set(blank_keys(MEASURED[path.stem])) >= {"data.train", "data.val"}
