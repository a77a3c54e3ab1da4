"""The extension points: each is public, writes to its room's table, and is used from outside in a test of its room."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import mmtune
from mmtune.errors import RecipeError

POINTS = {
    "loss": ("mmtune.losses", "TABLE"),
    "batch_plan": ("mmtune.recipe.batches_block", "PLANS"),
    "miner_source": ("mmtune.mining.sources", "TABLE"),
    "guard": ("mmtune.mining.guards", "TABLE"),
    "modality": ("mmtune.modalities", "TABLE"),
    "backbone": ("mmtune.backbones", "TABLE"),
    "scorer": ("mmtune.backbones.scorers", "TABLE"),
    "store": ("mmtune.index.stores", "TABLE"),
    "export_format": ("mmtune.exporting.format_table", "TABLE"),
    "metric": ("mmtune.evaluation.metrics", "METRICS"),
    "task": ("mmtune.evaluation.tasks.task", "TASKS"),
    "anomaly_scorer": ("mmtune.evaluation.tasks.anomaly_scorers", "SCORERS"),
    "vector_source": ("mmtune.index.adopt.vector_sources", "SOURCES"),
    "optimizer": ("mmtune.recipe.optimizer_block", "TABLE"),
    "callback": ("mmtune.recipe.run_block", "CALLBACKS"),
    "augmentation": ("mmtune.modalities", "AUGMENTATIONS"),
}


def test_there_are_exactly_these():
    assert {n for n in mmtune.__all__ if n.startswith("register_")} == {f"register_{n}" for n in POINTS}


@pytest.mark.parametrize("name", sorted(POINTS))
def test_a_part_is_in_its_rooms_table_afterwards(name):
    module, attribute = POINTS[name]
    table = getattr(importlib.import_module(module), attribute)
    before = dict(table)
    register = getattr(mmtune, f"register_{name}")
    try:
        register("a_part_of_my_own", "my_package.my_module:Part")
        assert table["a_part_of_my_own"] == "my_package.my_module:Part" and before.items() < table.items()
        with pytest.raises(RecipeError, match="letters, digits"):
            register("not: a name", "my_package.my_module:Part")
    finally:
        table.clear()
        table.update(before)
    assert list(inspect.signature(register).parameters) == ["name", "target"]


@pytest.mark.parametrize("name", sorted(POINTS))
def test_some_test_adds_one_from_outside(name):
    """By the public function, the room's own, or `package.module:Attribute`."""
    module = POINTS[name][0]
    room = module.split(".")[1]
    own = {"miner_source": "register_source"}.get(name, f"register_{name}")
    here = Path(__file__)
    texts = [p.read_text() for p in here.parents[1].rglob("test_*.py") if p != here]
    users = [t for t in texts if re.search(rf"\b{own}\(", t) or (room in t and re.search(r"\bregister\(", t))]
    assert users, f"no test registers a {name} from outside"
