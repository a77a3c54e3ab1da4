"""Slices of an evaluation: by the values of a column, and by ranges of a quantity."""

import numpy as np
import pytest

from mmtune.errors import RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.slices import slice_direction, slices_by_value
from tests.support.evaluate_helpers import corpus


def test_slices_of_a_column_and_of_a_quantity():
    assert slices_by_value("kind", ["r1", "r2", "r3", "r4"], ["x", "y", "x", None]) == {
        "kind=x": {"r1", "r3"},
        "kind=y": {"r2"},
    }
    assert set(slices_by_value("size", ["r1", "r2"], [36864.0, 0.5])) == {"size=36864", "size=0.5"}
    parts = slices_by_value("length", [f"r{i}" for i in range(101)], range(101))
    assert list(map(len, parts.values())) == [26, 25, 25, 25] and set().union(*parts.values()) == {f"r{i}" for i in range(101)}
    assert all(name.startswith("length=") for name in parts)
    with pytest.raises(RecipeError, match="no row has a value"):
        slices_by_value("kind", ["r1"], [None])


def test_a_slice_is_the_mean_over_its_queries_worst_first():
    vectors = corpus(np.random.default_rng(0), 60, 6, 8, content=40)
    direction = evaluate_vectors(vectors, per_query=True).directions["a->b"]
    ids = sorted(vectors["a"].ids)
    parts = slice_direction(direction, {"first": set(ids[:20]), "second": set(ids[20:]), "none": {"?"}}, "mrr")
    assert set(parts) == {"first", "second"}
    for name, rows in (("first", set(ids[:20])), ("second", set(ids[20:]))):
        members = [i for i, r in enumerate(direction.query_rows) if rows & set(r)]
        assert parts[name].queries == len(members)
        assert parts[name].metrics["mrr"] == pytest.approx(np.mean([direction.values["mrr"][i] for i in members]))
    values = [s.metrics["mrr"] for s in parts.values()]
    assert values == sorted(values)
    with pytest.raises(RecipeError, match="per_query"):
        slice_direction(evaluate_vectors(vectors).directions["a->b"], {"first": set(ids)}, "mrr")
