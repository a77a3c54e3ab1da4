"""Sweeps: trials, pruning, a killed sweep that continues, the gate, the report; runs with several seeds."""

import json
import statistics
from pathlib import Path

import pytest
import scipy.stats
import yaml

import mmtune
from mmtune.cli import main
from mmtune.errors import MmtuneError, RecipeError, TrainingError
from mmtune.evaluation.seed_statistics import spread_of
from mmtune.sweeps import run_sweep
from mmtune.sweeps.repeat_seeds import repeat_seeds
from mmtune.training.callbacks import Callback
from tests.support import corpora

SPACE = {"train.lr": "[1e-5..1e-2 log]", "tune": ["full", "head"]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sweep")


def recipe(root, **train):
    pictures = ("image", "text")
    return {
        "model": "tiny:clip",
        "data": {"train": corpora.packed(root, 24, 0, pictures), "val": corpora.packed(root, 12, 1, pictures)},
        "train": {"epochs": 2, "batch_size": 12, "precision": "fp32", **train},
    }


def table(result):
    return [(t["state"], t["metric"], t["values"]) for t in result.trials]


def test_a_killed_sweep_continues_to_the_same_trials(root, tmp_path, monkeypatch):
    pictures = ("image", "text")
    whole = mmtune.sweep(
        recipe(root), SPACE, tmp_path / "whole", trials=5, gate=corpora.packed(root, 12, 2, pictures), quiet=True
    )
    assert len(whole.trials) == 5 and whole.best_metric == max(t["metric"] for t in whole.trials if t["state"] == "complete")
    assert {t["values"]["tune"] for t in whole.trials} <= {"full", "head"}
    assert all(1e-5 <= t["values"]["train.lr"] <= 1e-2 for t in whole.trials)
    assert mmtune.load(whole.artifact).dim and whole.status in (0, 1) and whole.comparison["verdict"]
    kept = [t["number"] for t in whole.trials if (tmp_path / "whole" / "trials" / str(t["number"]) / "artifact").exists()]
    assert kept == [whole.best]
    page = (tmp_path / "whole" / "sweep.html").read_text()
    assert "train.lr" in page and f"Best: trial {whole.best}" in page and "What mattered" in page
    assert json.loads((tmp_path / "whole" / "sweep.json").read_text())["best"] == whole.best

    train, calls = run_sweep.train, []

    def killed(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt  # as a kill: the trial stays in the state "running"
        return train(*args, **options)

    monkeypatch.setattr(run_sweep, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        mmtune.sweep(recipe(root), SPACE, tmp_path / "cut", trials=5, quiet=True)
    monkeypatch.setattr(run_sweep, "train", train)
    continued = mmtune.sweep(recipe(root), SPACE, tmp_path / "cut", trials=5, quiet=True)
    assert table(continued) == table(whole) and continued.best == whole.best
    with pytest.raises(MmtuneError, match="another sweep"):
        mmtune.sweep(recipe(root, lr=1.0), {"tune": ["full", "head"]}, tmp_path / "cut", trials=5)


def test_a_bad_trial_is_pruned_and_a_broken_one_does_not_end_the_sweep(root, tmp_path, monkeypatch):
    study = run_sweep._study(tmp_path, 0, True)
    for _ in range(run_sweep.STARTUP_TRIALS):
        trial = study.ask()
        trial.report(0.9, 500)
        study.tell(trial, 0.9)
    trial = study.ask()

    class Context:
        step, total_steps = 2, 4

    with pytest.raises(run_sweep.Pruned):
        run_sweep.Pruning(trial).on_validation(Context, {"metric": 0.1})
    train, calls = run_sweep.train, []

    def sometimes(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise TrainingError("out of memory at step 3")
        return train(*args, **options)

    monkeypatch.setattr(run_sweep, "train", sometimes)
    result = mmtune.sweep(recipe(root, epochs=1), {"tune": ["full", "head"]}, tmp_path / "mixed", trials=3, quiet=True)
    assert [t["state"] for t in result.trials] == ["complete", "fail", "complete"]
    assert result.trials[1]["error"] == "out of memory at step 3" and "out of memory at step 3" in str(result)


def test_what_cannot_work_is_said_before_the_first_trial(root, tmp_path, capsys):
    data = recipe(root)["data"]
    for space, options, message in (
        ({}, {}, "nothing is searched"),
        ({"run.dir": ["a", "b"]}, {}, r"run\.dir: cannot be searched"),
        (SPACE, {"gate": data["val"]}, "a third split"),
        (SPACE, {"trials": 0}, "--trials 0"),
    ):
        with pytest.raises(RecipeError, match=message):
            mmtune.sweep(recipe(root), space, tmp_path / "out", **options)
    with pytest.raises(RecipeError, match="data.val: a sweep needs validation data"):
        mmtune.sweep(recipe(root) | {"data": {"train": data["train"]}}, SPACE, tmp_path / "out")
    with pytest.raises(RecipeError, match=r"train\.lrr"):
        mmtune.sweep(recipe(root), {"train.lrr": ["1", "2"]}, tmp_path / "out", trials=2, quiet=True)
    assert main(["sweep", str(tmp_path / "none.yaml"), "train.lr=[1e-5..1e-3 log]", "--out", str(tmp_path / "x")]) == 2
    assert "no such recipe file" in capsys.readouterr().err


def test_seeds_give_mean_sd_and_a_t_interval(root, tmp_path):
    values = [0.1, 0.4, 0.35, 0.2]
    got = spread_of(values)
    low, high = scipy.stats.t.interval(0.95, 3, statistics.mean(values), scipy.stats.sem(values))
    assert got["mean"] == pytest.approx(statistics.mean(values)) and got["sd"] == pytest.approx(statistics.stdev(values))
    assert (got["low"], got["high"]) == (pytest.approx(low), pytest.approx(high))
    assert spread_of([0.5]) == {"mean": 0.5, "sd": None, "low": None, "high": None, "values": [0.5]}

    keys = recipe(root, seed=4) | {"run": {"dir": str(tmp_path / "run")}}
    result = repeat_seeds(keys, seeds=2, quiet=True)
    assert result.seeds == [4, 5] and len(result.artifacts) == 2
    single = mmtune.train(recipe(root, seed=5) | {"run": {"dir": str(tmp_path / "one")}}, quiet=True)
    name = "text->image map"
    assert result.scores[name][1] == single.result.directions["text->image"].metrics["map"]
    assert result.spread[name]["mean"] == pytest.approx(sum(result.scores[name]) / 2)
    (tmp_path / "run" / "seeds.json").unlink()
    assert repeat_seeds(keys, seeds=2, resume=True, quiet=True).to_dict() == result.to_dict()
    assert "95% t-interval" in str(result)


def test_python_and_the_command_line_train_the_same_seeds(root, tmp_path, capsys):
    data = recipe(root)["data"]
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(root, epochs=1, seed=3) | {"data": {"train": data["train"]}}))
    argv = ["train", str(path), f"data.val={data['val']}", f"run.dir={tmp_path / 'cli'}", "--seeds", "2", "--json", "--quiet"]
    assert main(argv) == 0
    document = json.loads(capsys.readouterr().out)
    ended = []

    class Ended(Callback):
        def on_end(self, context, result):
            ended.append(context.recipe.train.seed)

    options = {"val": data["val"], "quiet": True, "callbacks": [Ended()]}
    found = mmtune.train(path, [f"run.dir={tmp_path / 'python'}"], seeds=2, **options)
    assert ended == found.seeds == document["seeds"] == [3, 4] and len(set(found.scores["text->image map"])) == 2
    assert {**found.to_dict(), "artifacts": []} == {**document, "artifacts": []}
    assert [Path(a).parent.name for a in found.artifacts] == ["seed-0", "seed-1"]
    assert mmtune.train(path, [f"run.dir={tmp_path / 'python'}"], seeds=2, resume=True, **options) == found and len(ended) == 2
    for seeds, val, message in ((0, data["val"], "seeds: 0 is not 1 or more"), (2, None, "data.val: seeds are compared")):
        with pytest.raises(RecipeError, match=message):
            mmtune.train(path, [f"run.dir={tmp_path / 'none'}"], val=val, seeds=seeds)
