"""A gate that compares by a task, and its guard on the retention data: in `compare`, a recipe, a report and a sweep's comparison."""

import html
import json
import re

import pytest
import yaml

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.compare_tasks import TaskComparison, compare_task
from mmtune.errors import DataError, ModelError, RecipeError
from mmtune.recipe.gate_block import Gate
from mmtune.reporting.measured import measure
from mmtune.reporting.report import report
from mmtune.reporting.subject import report_subject
from tests.support import corpora
from tests.support.report_helpers import run

COLUMNS = ("image", "text")
BASE = "tiny:clip"
OPTIONS = {"label": "shade", "neighbours": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def gate():
    return {"task": "knn", "task_options": OPTIONS, "cluster": "group", "min_gain": -0.9}


@pytest.fixture(scope="module")
def tuned(root, gate):
    return run(root, COLUMNS, gate=gate)


@pytest.fixture(scope="module")
def held(root):
    return corpora.packed(root, 30, 7, COLUMNS)


@pytest.fixture(scope="module")
def val(root):
    return corpora.packed(root, 18, 1, COLUMNS)


def test_a_loss_on_retention_data_beyond_the_budget_fails_whatever_the_task_gained(tuned, val, held, gate):
    """`compare --task` only warned that it did not look."""
    artifact = str(tuned / "artifact")
    back = mmtune.compare(artifact, BASE, val, gate={**gate, "retention_loss": 0.02}, retention=held)
    assert isinstance(back, TaskComparison) and back.verdict == "fail"
    assert "ndcg@10 of the guard 'retention'" in back.reason and back.gate.guards == {"retention": -0.02}
    of_retrieval = mmtune.compare(artifact, BASE, val, retention=held, confusable=False).slices["retention"]
    assert back.guards["retention"].to_dict() == of_retrieval.to_dict()
    assert back.to_dict()["guards"]["retention"]["difference"] == of_retrieval.difference < -0.1
    assert "retention ndcg@10" in str(back)
    forth = mmtune.compare(BASE, artifact, val, gate=gate, retention=held)
    assert forth.verdict == "pass" and forth.gate.guards == {"retention": -0.01} and "1 guard held" in forth.reason
    loose = mmtune.compare(artifact, BASE, val, gate={**gate, "guards": {"retention": -1.0}}, retention=held)
    assert loose.verdict == "pass"
    with pytest.raises(RecipeError, match="give the retention data"):
        mmtune.compare(artifact, BASE, val, gate={**gate, "retention_loss": 0.02})
    with pytest.raises(DataError, match="the candidate.*the retention data's"):
        mmtune.compare(BASE, artifact, val, gate=gate, retention=corpora.packed(tuned.parent, columns=COLUMNS))


def test_retention_with_one_modality_is_retrieval_within_it(tuned, val, root, gate):
    pictures = str(root / "pictures")
    mmtune.pack(corpora.source(root / "pictures-files", 24, 9, ("image",)), pictures)
    found = mmtune.compare(BASE, str(tuned / "artifact"), val, gate=gate, retention=pictures).guards["retention"]
    of_retrieval = mmtune.compare(BASE, str(tuned / "artifact"), pictures, gate={"metric": "ndcg@10"})
    assert found.difference == of_retrieval.directions["image->image"].difference


def test_the_verb_takes_the_task_from_the_recipe(tuned, val, tmp_path, capsys, gate):
    artifact = str(tuned / "artifact")
    by_recipe = ["compare", [BASE, artifact, val, "--gate", str(tuned / "recipe.yaml"), "--json", "--quiet"]]
    dispatch(*by_recipe)
    document = json.loads(capsys.readouterr().out)
    want = compare_task(BASE, artifact, val, "knn", OPTIONS, gate={"min_gain": -0.9}, cluster="group")
    assert document["task"] == "knn" and document["gate"]["metric"] == "accuracy" and document["cluster"] == "group"
    assert document["differences"] == want.to_dict()["differences"] and document["verdict"] == want.verdict == "pass"
    # options of the command line replace the gate's; another task has none of them
    dispatch(by_recipe[0], [*by_recipe[1], "--neighbours", "1", "--metric", "macro_f1", "--cluster", ""])
    document = json.loads(capsys.readouterr().out)
    want = compare_task(BASE, artifact, val, "knn", {"label": "shade", "neighbours": 1}, cluster="")
    assert document["differences"] == want.to_dict()["differences"] and document["gate"]["metric"] == "macro_f1"
    dispatch(by_recipe[0], [*by_recipe[1], "--task", "anomaly", "--normal", "shade=dark"])
    assert json.loads(capsys.readouterr().out)["task"] == "anomaly"
    dispatch(by_recipe[0], [*by_recipe[1], "--task", "retrieval", "--metric", "map"])
    assert json.loads(capsys.readouterr().out)["gate"]["metric"] == "map"


def test_the_gates_column_is_resampled_in_retrieval_too(tuned, val):
    by_name = mmtune.compare(BASE, str(tuned / "artifact"), val, gate={"cluster": "shade"}, confusable=False)
    assert {d.clusters for d in by_name.directions.values()} == {2}


@pytest.mark.parametrize(
    "gate, message",
    [
        ({"task": "kn"}, "unknown task 'kn'"),
        ({"task": "knn", "task_options": {"lable": "shade"}}, "gate.task_options.lable: is not an option of task knn"),
        (
            {"task": "knn", "guards": {"confusable": 0}},
            "gate: guards.confusable: a comparison by a task has no guard but retention",
        ),
        ({"task_options": {"label": "shade"}}, "gate: task_options: needs a task"),
        ({"task": "knn", "task_options": {"label": "shadow"}}, "gate.task_options.label: .*shadow"),
        ({"task": "knn", "task_options": {"reference": "no/such/data"}}, "gate.task_options.reference: .*no/such/data"),
        ({"task": "knn", "direction": "text->image"}, "gate.direction: there is no direction 'text->image'"),
    ],
)
def test_a_mistake_in_a_recipe_is_found_before_training(root, tmp_path, gate, message):
    data = {"train": corpora.packed(root, columns=COLUMNS), "val": corpora.packed(root, 18, 1, COLUMNS)}
    with pytest.raises((RecipeError, DataError), match=message):
        mmtune.train({"model": BASE, "data": data, "gate": gate, "run": {"dir": str(tmp_path / "r")}}, quiet=True)


def test_options_that_only_retrieval_has(tuned, val, gate):
    with pytest.raises(RecipeError, match="slices: is an option of retrieval, and the gate compares by knn"):
        mmtune.compare(BASE, str(tuned / "artifact"), val, gate=gate, slices=["shade"])
    with pytest.raises(RecipeError, match="the gate compares by knn, this comparison by anomaly"):
        compare_task(BASE, BASE, val, "anomaly", {}, gate=gate)
    assert Gate.read({"task": "retrieval"}) == Gate()


def test_the_verdict_of_a_report_is_that_of_the_recipes_task(tuned, val, tmp_path, held, gate):
    out = tmp_path / "r.html"
    made = report(tuned, out)
    want = compare_task(BASE, str(tuned / "artifact"), val, "knn", OPTIONS, gate=gate)
    assert made.verdict == want.verdict == "pass"
    words = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", out.read_text())).split())
    assert want.reason in words and f"accuracy, image {want.deciding.base:.3f} → {want.deciding.candidate:.3f}" in words
    assert "Tasks on the same data" in words and "must improve" not in words  # no mark at a direction that does not decide
    with pytest.raises(ModelError, match="this is the directory of a run; name its model, .*artifact"):
        mmtune.load(tuned)
    measured = measure(report_subject(tuned), retention=held)
    assert measured.by_task is not None and measured.document["reason"] == measured.by_task.reason
    assert ("retention", "ndcg@10") in [row[:2] for row in measured.tasks[0].rows]
    recipe = yaml.safe_load((tuned / "recipe.yaml").read_text())
    assert recipe["gate"]["metric"] == "first"
