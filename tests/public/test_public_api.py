"""`import mmtune`: light, without side effects, with signatures that an editor and `help` show."""

import importlib
import inspect
import json
import subprocess
import sys

import pytest

import mmtune
from mmtune.runtime.results import ResultFields

FUNCTIONS = [n for n in mmtune.__all__ if inspect.isfunction(getattr(mmtune, n))]
ROOMS = {
    "load": "mmtune.model.artifact.load",
    "save": "mmtune.model.artifact.save",
    "pack": "mmtune.data.pack.pack",
    "open_data": "mmtune.data.shards.dataset",
    "label_budget": "mmtune.labelling.label",
    "open_label_session": "mmtune.labelling.label",
    "mine": "mmtune.mining.mine_model",
    "train": "mmtune.run",
    "sweep": "mmtune.sweeps.run_sweep",
    "soup": "mmtune.training.regularise.soup",
    "bench": "mmtune.benchmark.throughput",
    "compare": "mmtune.comparison.compare_models",
    "report": "mmtune.reporting.report",
    "doctor": "mmtune.quality.doctor",
    "advise": "mmtune.quality.advise",
    "embed": "mmtune.embedding.parquet_parts",
    "generate_pairs": "mmtune.pairs.generated_pairs",
    "group_duplicates": "mmtune.pairs.duplicate_rows",
    "split_pairs": "mmtune.pairs.corpus_split",
    "pairs_from_catalog": "mmtune.pairs.product_catalog",
    "pairs_from_labels": "mmtune.pairs.label_pairs",
    "pairs_from_segments": "mmtune.pairs.recording_segments",
    "pairs_from_judgments": "mmtune.pairs.import_judgments",
    "pairs_from_logs": "mmtune.pairs.logs",
    "predict": "mmtune.prediction.predict",
    "evaluate": "mmtune.evaluation.evaluate_model",
}
INTERNAL = {"processes"}
"""Parameters of the rooms' functions that the public ones leave out."""
IN_MEMORY = {"columns", "id", "group"}
"""Parameters with which these public functions open rows in memory before they call the room's function."""
OPEN_ROWS = {
    "embed": IN_MEMORY,
    "evaluate": IN_MEMORY,
    "mine": IN_MEMORY,
    "open_data": IN_MEMORY,
    "train": {*IN_MEMORY, "data", "val"},
}


CHOICES = {"embed": {"read"}, "train": {"engine", "seeds", "workers"}}
"""Parameters that choose between two functions of a room."""


def test_every_public_name_is_there():
    named = "load Model similarity save pack open_data Recipe train mine evaluate compare Gate doctor advise report embed soup bench sweep"
    assert set(named.split()) | {"Collection"} <= set(mmtune.__all__) <= set(dir(mmtune))
    assert all(getattr(mmtune, n) is not None for n in mmtune.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        mmtune.nothing  # noqa: B018


def test_public_functions_are_functions_with_explicit_parameters_and_a_docstring():
    assert len(FUNCTIONS) >= 20
    for name in FUNCTIONS:
        signature = inspect.signature(getattr(mmtune, name))
        assert all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()), name
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert inspect.getdoc(getattr(mmtune, name)), name


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_public_function_has_the_parameters_of_its_room(name):
    def parameters(function):
        return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values() if p.name not in INTERNAL]

    public, of_room = parameters(getattr(mmtune, name)), parameters(getattr(importlib.import_module(ROOMS[name]), name))
    added = OPEN_ROWS.get(name, set())
    chosen = CHOICES.get(name, set())
    assert {n for n, *_ in public} - {n for n, *_ in of_room} == added | chosen
    assert [p for p in public if p[0] not in added | chosen] == of_room
    assert all(kind is inspect.Parameter.KEYWORD_ONLY and default is None for n, kind, default in public if n in added)


def test_importing_changes_nothing_in_the_process():
    code = (
        "import csv, json, os, sys, warnings\n"
        "before = dict(os.environ), csv.field_size_limit(), list(sys.path), warnings.showwarning\n"
        "import mmtune\n"
        "after = dict(os.environ), csv.field_size_limit(), list(sys.path), warnings.showwarning\n"
        "heavy = [m for m in ('torch', 'numpy', 'transformers', 'pydantic', 'rich', 'PIL') if m in sys.modules]\n"
        "print(json.dumps([before == after, heavy, type(mmtune).__name__, callable(mmtune)]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, [], "module", False]


def test_similarity_is_the_cosine():
    import numpy as np

    q, c = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[4.0, 3.0], [0.0, -2.0]])
    assert mmtune.similarity(q, c) == pytest.approx(np.array([[24 / 25, -4 / 5], [4 / 5, 0.0]]))
    assert mmtune.similarity(q[0], c).shape == (1, 2)


def test_a_training_result_says_which_step_became_the_artifact():
    from mmtune.training.train_result import TrainResult

    best = [{"metric": 0.75, "checkpoint": "step-0000040"}, {"metric": 0.7, "checkpoint": "step-0000060"}]
    lines = str(TrainResult("runs/a", "f", {}, None, {}, 2.0, 0.5, 8, 4.0, 60, best)).splitlines()
    assert lines[2] == "the weights are those of step 40 of 60, whose validation score was best (0.7500)"
    assert len(str(TrainResult("runs/a", "f", {}, None, {}, 2.0, 0.5, 8, 4.0, 60, [])).splitlines()) == 2
    base = str(TrainResult("runs/a", "f", {}, 0.0, {}, 2.0, 0.5, 8, 4.0, 60, [{"checkpoint": "step-16", "metric": -1.0423}]))
    assert (
        "no checkpoint kept the forgetting budget: the upper end of the loss on the retention data was 0.0423 or more" in base
    )
    assert "the artifact is the base model, nothing of the training is kept" in base and "the weights are those" not in base


def test_results_are_fields_and_keys():
    from mmtune.training.train_result import TrainResult

    result = TrainResult("runs/a", "f", {}, None, {}, 2.0, 0.5, 8, 4.0, 2, [])
    assert result["artifact"] == result.artifact == "runs/a" and dict(result)["steps"] == 2
    assert "result" not in result.to_dict() and json.dumps(result.to_dict())
    assert result.to_pandas()["pairs_per_second"].tolist() == [2.0]
    assert "<table>" in result._repr_html_() and isinstance(result, ResultFields)
    with pytest.raises(KeyError):
        result["best single"]
