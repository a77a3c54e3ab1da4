"""Comparisons and intervals of tasks: against the metrics of repeated rows, coverage over draws, and through the real verbs."""

import json
import warnings

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.compare_tasks import compare_task
from mmtune.comparison.task_intervals import metric_intervals, resampled_bounds, task_difference
from mmtune.contracts import Embeddings
from mmtune.errors import DataWarning, RecipeError
from mmtune.evaluation.tasks.anomaly import detect
from mmtune.evaluation.tasks.classified import Classified, confusion_counts
from mmtune.evaluation.tasks.zero_shot import nearest_class
from tests.support import corpora

COLUMNS = ("audio", "text")


def units(rng, n, d=6):
    z = rng.normal(size=(n, d)).astype(np.float32)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def classified(rng, n=60, classes=3, right=0.7):
    truth = rng.integers(0, classes, n)
    predicted = np.where(rng.random(n) < right, truth, rng.integers(0, classes, n))
    counts = confusion_counts(truth, predicted, classes)
    return Classified("a->a", list("xyz"), counts, 0, row_ids=[f"r{i}" for i in range(n)], truth=truth, predicted=predicted)


def test_weighted_metrics_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    for _ in range(10):
        c, weights = classified(rng), rng.integers(0, 4, 60)
        t, p = np.repeat(c.truth, weights), np.repeat(c.predicted, weights)
        got = c.weighted_metrics(weights)
        assert got["accuracy"] == pytest.approx((t == p).mean())
        assert got["macro_f1"] == pytest.approx(f1_score(t, p, average="macro", labels=np.unique(t)))
        ids = [f"r{i:02d}" for i in range(60)]
        e = Embeddings(ids, [None] * 60, {"audio": np.arange(1, 61)}, units(rng, 60))
        normal = {i: k < 40 for k, i in enumerate(ids)}
        found = detect("audio", e, normal, {i: "m1" if k % 2 else "m2" for k, i in enumerate(ids)})
        got, at = found.weighted_metrics(weights), {i: k for k, i in enumerate(ids)}
        areas = []
        for m in ("m1", "m2"):
            rows = [i for i in found.row_ids if found.machine_of[i] == m for _ in range(weights[found.row_ids.index(i)])]
            areas.append(roc_auc_score([at[i] >= 40 for i in rows], [found.scores[i] for i in rows]))
        assert got["auroc"] == pytest.approx(np.mean(areas))
        assert found.weighted_metrics(np.ones(60, int)) == pytest.approx(found.metrics)


def test_a_class_that_no_row_has_is_no_class_of_macro_f1():
    """One of 100 rows was predicted as a class of the reference alone, whose F1 of 0 took a third off the mean and its interval."""
    truth = np.repeat([0, 1], 50)
    predicted = truth.copy()
    predicted[0] = 2
    ids = [f"r{i}" for i in range(100)]
    c = Classified("a->a", list("xyz"), confusion_counts(truth, predicted, 3), 0, row_ids=ids, truth=truth, predicted=predicted)
    assert c.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro", labels=[0, 1])) and c.macro_f1 > 0.99
    low, high = metric_intervals(c, None, "knn")["macro_f1"]
    assert 0.95 < low <= c.macro_f1 <= high
    only_first = c.weighted_metrics((truth == 0).astype(int))
    assert only_first["macro_f1"] == pytest.approx(f1_score(truth[:50], predicted[:50], average="macro", labels=[0]))


def test_the_interval_covers_the_true_accuracy_when_clusters_are_resampled():
    """20 recordings with 6 equal windows each: rows as clusters would be far too narrow."""
    inside, narrow = 0, 0
    for run in range(200):
        rng = np.random.default_rng(run)
        right = np.repeat(rng.random(20) < 0.7, 6)

        def accuracy(weights, right=right):
            return {"accuracy": float((weights * right).sum() / weights.sum())}

        low, high = resampled_bounds(accuracy, np.repeat(np.arange(20), 6), resamples=200, seed=run)
        inside += low["accuracy"] <= 0.7 <= high["accuracy"]
        low, high = resampled_bounds(accuracy, np.arange(120), resamples=200, seed=run)
        narrow += low["accuracy"] <= 0.7 <= high["accuracy"]
    assert inside >= 180 and narrow < 150
    assert resampled_bounds(accuracy, np.repeat(np.arange(4), 30)) is None


def test_a_difference_is_paired_by_row():
    rng = np.random.default_rng(1)
    base = classified(rng, right=0.3)
    better = Classified("a->a", base.classes, base.confusion, 0, row_ids=base.row_ids, truth=base.truth, predicted=base.truth)
    better.confusion = confusion_counts(base.truth, base.truth, 3)
    d = task_difference(base, better, None, "knn")["accuracy"]
    wrong = int((base.truth != base.predicted).sum())
    assert d.difference == pytest.approx(wrong / 60) and (d.wins, d.losses) == (wrong, 0)
    assert d.interval[0] > 0.3 and d.clusters == 60
    same = task_difference(base, base, {r: f"rec{i // 20}" for i, r in enumerate(base.row_ids)}, "knn")["accuracy"]
    assert same.interval == (-1.0, 1.0) and same.clusters == 3


def test_the_nearest_class_and_the_cosines_of_classes():
    rng = np.random.default_rng(0)
    names = Embeddings([f"n{i}" for i in range(9)], list("cabaabccd")[:9], {}, units(rng, 9))
    q = units(rng, 20)
    predicted, cosine = nearest_class(q, names)
    expected = np.stack([np.max([q @ names.vectors[i] for i in range(9) if names.groups[i] == g], 0) for g in "abcd"], 1)
    np.testing.assert_allclose(cosine, expected, atol=1e-6)
    assert predicted.tolist() == expected.argmax(1).tolist()


def test_no_error_in_a_few_rows_does_not_prove_that_there_are_none():
    """Every resample of 20 right rows is right, so the interval was [1, 1]."""
    from scipy.stats import binomtest

    for count in (5, 20, 300):
        for right in (True, False):
            truth = np.arange(count) % 2
            predicted = truth if right else 1 - truth
            found = Classified(
                "x",
                ["a", "b"],
                confusion_counts(truth, predicted, 2),
                0,
                "neighbours",
                5,
                [str(i) for i in range(count)],
                truth,
                predicted,
            )
            exact = binomtest(count if right else 0, count).proportion_ci(method="exact")
            assert metric_intervals(found, None, "knn")["accuracy"] == pytest.approx([exact.low, exact.high])


def test_pieces_of_one_recording_are_resampled_together_unless_single_rows_are_asked_for(tmp_path, capsys):
    """Single rows were the default: a difference that four pieces of one recording share passed as certain."""
    for part, seed in (("train", 0), ("val", 1)):
        table = corpora.source(tmp_path / f"files-{part}", 24, seed, COLUMNS)
        rows = [
            f"{line},{'recording' if i == 0 else f'{part}{(i - 1) // 4}'}"
            for i, line in enumerate(table.read_text().strip().split("\n"))
        ]
        table.write_text("\n".join(rows) + "\n")
        mmtune.pack(table, tmp_path / part)
    task = ["--task", "knn", "--label", "shade", "--reference", str(tmp_path / "train")]
    for verb, models in (("eval", ["tiny:clap"]), ("compare", ["tiny:clap", "tiny:clap"])):
        argv = [*models, str(tmp_path / "val"), *task, "--quiet"]
        for more, resampled, clusters in (
            ([], "values of recording", 6),
            (["--cluster", ""], "rows", 24),
            (["--cluster", "shade"], None, 2),
        ):
            dispatch(verb, [*argv, *more])
            said = capsys.readouterr().out
            assert resampled is None or resampled in said
            dispatch(verb, [*argv, *more, "--json"])
            document = json.loads(capsys.readouterr().out)
            assert document["cluster"] == {6: "recording", 24: None, 2: "shade"}[clusters]
            if verb == "compare":
                assert document["differences"]["audio"]["accuracy"]["clusters"] == clusters


def test_votes_among_pieces_of_one_recording_warn(tmp_path):
    table = corpora.source(tmp_path / "files", 24, 0, COLUMNS)
    rows = table.read_text().strip().split("\n")
    table.write_text("\n".join(f"{line},{'recording' if i == 0 else (i - 1) // 4}" for i, line in enumerate(rows)) + "\n")
    mmtune.pack(table, tmp_path / "packed")
    data = str(tmp_path / "packed")
    with pytest.warns(DataWarning, match="24 rows are of 6 values of 'recording'.*--exclude-same recording"):
        mmtune.evaluate("tiny:clap", data, task="knn", label="shade")
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        mmtune.evaluate("tiny:clap", data, task="knn", label="shade", exclude_same="recording")


def test_the_verbs(tmp_path, capsys):
    data, reference = corpora.packed(tmp_path, 18, 1, COLUMNS), corpora.packed(tmp_path, 24, 0, COLUMNS)
    task = ["--task", "knn", "--label", "shade", "--reference", reference, "--json"]
    assert dispatch("compare", ["tiny:clap", "tiny:clap", data, *task]) == 1
    document = json.loads(capsys.readouterr().out)
    d = document["differences"]["audio"]["accuracy"]
    assert document["verdict"] == "fail" and d["difference"] == 0 and d["clusters"] == d["queries"] == 18
    assert document["gate"]["metric"] == "accuracy" and document["gate"]["direction"] == "audio"
    assert dispatch("compare", ["tiny:clap", "tiny:clap", data, *task, "--cluster", "shade"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] in ("inconclusive", "fail") and "with 2 clusters no interval is possible" in document["reason"]
    assert dispatch("eval", ["tiny:clap", data, *task, "--quiet"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    assert evaluated["cluster"] is None  # no column says that rows are pieces of recordings
    ends = evaluated["intervals"]["audio"]["accuracy"]
    accuracy = mmtune.evaluate("tiny:clap", data, task="knn", label="shade", reference=reference).metric("accuracy")
    assert ends[0] <= accuracy <= ends[1] and ends[1] - ends[0] < 1
    for argv, message in (
        (["--task", "knn", "--label", "shade", "--qrels", "x"], "--qrels: is an option of retrieval"),
        (["--label", "shade"], "need --task"),
        (["--task", "knn", "--label", "shade", "--metric", "map"], "knn has no metric 'map'"),
        (["--task", "knn", "--label", "shade", "--guard", "retention=0"], "give the retention data"),
        (["--task", "knn", "--label", "shade", "--guard", "confusable=0"], "no guard but retention"),
    ):
        assert dispatch("compare", ["tiny:clap", "tiny:clap", data, *argv]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(RecipeError, match="use compare"):
        compare_task("tiny:clap", "tiny:clap", data, "retrieval", {})
