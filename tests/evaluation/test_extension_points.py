"""A metric and a task that are written outside the package: registered, or named as package.module:Class."""

import json
import textwrap

import numpy as np
import pytest

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.compare_models import compare
from mmtune.errors import MmtuneError
from mmtune.evaluation import METRICS, TASKS, EvaluationTask, Metric, register_metric, register_task
from tests.support import corpora

METRIC = """
    from mmtune.evaluation import Metric

    class RankBiasedPrecision(Metric):
        cutoff = True

        def per_query(self, ranks, k):
            return ranks.sum((ranks.rank <= k) * 0.2 * 0.8 ** (ranks.rank - 1))
"""
TASK = """
    from dataclasses import dataclass
    from mmtune.evaluation import EvaluationTask, Scores

    @dataclass
    class Spread(EvaluationTask):
        power: float = 1.0

        def run(self, inputs):
            vectors = inputs.embed()
            norms = {m: float((e.vectors.mean(0) ** 2).sum() ** 0.5) for m, e in vectors.items()}
            return {m: Scores({"spread": (1 - n) ** self.power}, len(vectors[m].ids)) for m, n in norms.items()}
"""


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A working directory with modules of its own, and tables that are as before afterwards."""
    (tmp_path / "own_metric.py").write_text(textwrap.dedent(METRIC))
    (tmp_path / "own_task.py").write_text(textwrap.dedent(TASK))
    monkeypatch.chdir(tmp_path)
    before = dict(METRICS), dict(TASKS)
    yield tmp_path
    for table, entries in zip((METRICS, TASKS), before, strict=True):
        table.clear()
        table.update(entries)


def rank_biased_precision(data, k):
    """By a plain loop over the whole matrix of scores, from image to text."""
    rows = mmtune.open_data(data)
    from mmtune.embedding.embed_rows import embed_data
    from mmtune.relevance.items import unique_items

    vectors = embed_data(mmtune.load("tiny:clip"), rows)
    images, texts = (unique_items(m, vectors[m]) for m in ("image", "text"))
    values = []
    for i in range(len(images)):
        groups = {rows.groups[r] for r in images.rows[i]}
        scores = [(float(images.vectors[i].astype(float) @ texts.vectors[j]), texts.ids[j]) for j in range(len(texts))]
        order = sorted(range(len(texts)), key=lambda j: scores[j], reverse=True)
        relevant = [n for n, j in enumerate(order) if groups & {rows.groups[r] for r in texts.rows[j]}]
        values.append(sum(0.2 * 0.8**n for n in relevant if n < k))
    return np.mean(values)


def test_a_metric_from_outside_is_reported_and_decides(outside, capsys):
    data, other = corpora.packed(outside, 24, 1), corpora.packed(outside, 24, 2)
    assert dispatch("eval", ["tiny:clip", data, "--metric", "own_metric:RankBiasedPrecision@5", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)["directions"]["image->text"]["metrics"]
    assert found["own_metric:RankBiasedPrecision@5"] == pytest.approx(rank_biased_precision(data, 5), abs=1e-6)
    register_metric("rbp", "own_metric:RankBiasedPrecision")
    metrics = mmtune.evaluate("tiny:clip", data).directions["image->text"].metrics
    assert metrics["rbp@5"] == found["own_metric:RankBiasedPrecision@5"] and {"rbp@1", "rbp@10", "ndcg@10"} < set(metrics)
    gate = {"metric": "rbp@3", "direction": "image->text"}
    comparison = compare("tiny:clip", "tiny:clip@3", data, gate=gate)
    assert comparison.gate.metric == "rbp@3" and "rbp@3 of image->text" in comparison.reason
    recipe = {
        "model": "tiny:clip",
        "data": {"train": other, "val": data},
        "run": {"dir": str(outside / "run")},
        "train": {"epochs": 1, "batch_size": 8, "precision": "fp32", "metric": "own_metric:RankBiasedPrecision@5"},
    }
    run = mmtune.train(recipe, quiet=True)
    tuned = mmtune.evaluate(str(outside / "run" / "artifact"), data, metrics=["own_metric:RankBiasedPrecision@5"])
    best = run["best"][0]["metric"]
    assert best == pytest.approx(tuned.metric("own_metric:RankBiasedPrecision@5"), abs=1e-9)


def test_a_task_from_outside_is_run_with_its_options(outside, capsys):
    data = corpora.packed(outside, 12, 1)
    argv = ["tiny:clip", data, "--task", "own_task:Spread", "--task-option", "power=2", "--json", "--quiet"]
    assert dispatch("eval", argv) == 0
    document = json.loads(capsys.readouterr().out)
    register_task("mine", "own_task:Spread")
    plain = mmtune.evaluate("tiny:clip", data, task="mine")
    assert document["settings"]["power"] == 2 and document["results"]["image"]["rows"] == 12
    assert document["results"]["image"]["spread"] == pytest.approx(plain.metric("spread") ** 2)
    assert plain.to_pandas().loc["image", "spread"] == plain.metric("spread") and "spread" in plain._repr_html_()
    with pytest.raises(MmtuneError, match="powr: is not an option of task mine; it has: power"):
        mmtune.evaluate("tiny:clip", data, task="mine", task_options={"powr": 2})


class OneNumber(Metric):
    def per_query(self, ranks, k):
        return np.ones(1)


class NoScores(EvaluationTask):
    def run(self, inputs):
        return {"image": 0.5}


def test_a_faulty_part_is_named(outside):
    data = corpora.packed(outside, 12, 1)
    with pytest.raises(MmtuneError, match=r"metric 'own_metrc:X'.*no module 'own_metrc' among the installed packages nor in"):
        mmtune.evaluate("tiny:clip", data, metrics=["own_metrc:X"])
    with pytest.raises(MmtuneError, match="no metric 'own_metric:RankBiasedPrecision'; write .*@K with a whole number K"):
        mmtune.evaluate("tiny:clip", data, metrics=["own_metric:RankBiasedPrecision"])
    with pytest.raises(MmtuneError, match="no metric 'map@3'; write map"):
        mmtune.evaluate("tiny:clip", data, metrics=["map@3"])
    register_metric("one", OneNumber)
    with pytest.raises(MmtuneError, match=r"metric one: returned an array of shape \(1,\)"):
        mmtune.evaluate("tiny:clip", data)
    del METRICS["one"]
    register_task("none", NoScores)
    with pytest.raises(MmtuneError, match="task none: returned float for image; it needs `metrics` and `to_dict`"):
        mmtune.evaluate("tiny:clip", data, task="none")
