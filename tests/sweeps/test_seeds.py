"""Several seeds of one recipe in eval, compare and report: statistics against scipy, and against each seed on its own."""

import json
import statistics

import pytest
import scipy.stats

import mmtune
from mmtune.cli import main
from mmtune.comparison import compare_models, compare_tasks
from mmtune.comparison.paired_difference import PairedDifference, mean_difference
from mmtune.errors import ModelError, RecipeError
from mmtune.evaluation.model_and_data import as_model
from mmtune.evaluation.seed_statistics import spread_of
from tests.support import corpora
from tests.support.layer_calls import layer_calls

PICTURES = ("image", "text")
DIRECTION, METRIC = "text->image", "ndcg@10"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("seeds")


@pytest.fixture(scope="module")
def held_out(root):
    return corpora.packed(root, 30, 2, PICTURES)


@pytest.fixture(scope="module")
def runs(root):
    """What `train --seeds 3` writes, with untrained models of three seeds; test_sweep.py has trained ones."""
    for i in range(3):
        mmtune.load(f"tiny:clip@{i + 1}").save(root / "runs" / f"seed-{i}" / "artifact")
        (root / "runs" / f"seed-{i}" / "recipe.yaml").write_text(f"model: tiny:clip\ntrain: {{seed: {i}}}\n")
    (root / "runs" / "seeds.json").write_text('{"seeds": [0, 1, 2]}')
    return root / "runs"


def scipy_interval(values):
    return scipy.stats.t.interval(0.95, len(values) - 1, statistics.mean(values), scipy.stats.sem(values))


def test_eval_gives_the_statistics_of_the_single_results(runs, held_out, tmp_path, capsys):
    found = mmtune.evaluate(runs, held_out, slices=["size:text"])
    each = [mmtune.evaluate(runs / f"seed-{i}" / "artifact", held_out) for i in range(3)]
    values = [r.metric(METRIC, DIRECTION) for r in each]
    spread = found.scores[DIRECTION][METRIC]
    assert spread["values"] == values and len(set(values)) > 1
    assert spread["sd"] == pytest.approx(statistics.stdev(values))
    assert (spread["low"], spread["high"]) == pytest.approx(scipy_interval(values))
    assert found.metric(METRIC)["mean"] == pytest.approx(statistics.mean(r.metric(METRIC) for r in each))
    assert any(name.startswith(f"{DIRECTION} | ") for name in found.scores)
    frame = found.to_pandas().set_index(["where", "metric"])
    assert frame.loc[(DIRECTION, METRIC), "seed 2"] == values[2]
    assert main(["eval", str(runs), held_out, "--json", "--quiet", "--out", str(tmp_path / "x.json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seeds"] == [0, 1, 2] and document["scores"][DIRECTION][METRIC]["mean"] == pytest.approx(spread["mean"])
    assert document == json.loads((tmp_path / "x.json").read_text())
    line = next(x for x in str(found).splitlines() if x.split()[:2] == [DIRECTION, METRIC])
    assert line.split()[2:4] == [f"{spread['mean']:.4f}", f"{spread['sd']:.4f}"]


def test_a_task_over_seeds(runs, held_out, capsys):
    assert main(["eval", str(runs), held_out, "--task", "knn", "--label", "group", "--json", "--quiet"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]["image"]
    single = mmtune.evaluate(runs / "seed-1" / "artifact", held_out, task="knn", label="group")
    assert scores["accuracy"]["values"][1] == single.metric("accuracy", "image")


def test_compare_takes_the_wider_interval_of_queries_and_seeds(runs, held_out, capsys):
    whole = mmtune.compare("tiny:clip", runs, held_out)
    each = [mmtune.compare("tiny:clip", runs / f"seed-{i}" / "artifact", held_out) for i in range(3)]
    of_seeds = [c.directions["mean"] for c in each]
    got = whole.directions["mean"]
    low, high = scipy_interval([d.difference for d in of_seeds])
    queries = [statistics.mean(d.interval[end] for d in of_seeds) for end in (0, 1)]
    assert got.difference == pytest.approx(statistics.mean(d.difference for d in of_seeds))
    assert got.interval == pytest.approx((min(low, queries[0]), max(high, queries[1])))
    assert got.queries_interval == pytest.approx(tuple(queries)) and got.seeds["sd"] > 0
    assert whole.seeds == [0, 1, 2] and "3 seeds (0, 1, 2)" in str(whole)
    with dispatch_json(["compare", "tiny:clip", str(runs), held_out], capsys) as document:
        assert document["directions"]["mean"]["seeds"]["values"] == pytest.approx([d.difference for d in of_seeds])
        assert document["seeds"] == [0, 1, 2] and document["verdict"] == whole.verdict


class dispatch_json:
    """Context manager: the JSON document that a verb prints."""

    def __init__(self, argv, capsys):
        capsys.readouterr()
        assert main([*argv, "--json"]) in (0, 1)
        self.document = json.loads(capsys.readouterr().out)

    def __enter__(self):
        return self.document

    def __exit__(self, *_):
        return None


def test_two_directories_of_seeds_are_compared_in_pairs(runs, root, held_out):
    same = mmtune.compare(runs, runs, held_out)
    assert same.directions["mean"].seeds["values"] == [0, 0, 0] and same.verdict == "fail"
    two = root / "two"
    two.mkdir()
    (two / "seeds.json").write_text('{"seeds": [0, 1]}')
    for i in range(2):
        (two / f"seed-{i}").symlink_to(runs / f"seed-{i}")
    with pytest.raises(RecipeError, match="has 3 seeds and .*two 2: seeds are compared in pairs"):
        mmtune.compare(runs, two, held_out)


def test_the_base_of_several_seeds_is_loaded_and_embedded_once(runs, held_out, tmp_path, monkeypatch):
    base, loaded = mmtune.load("tiny:clip"), []

    def counted(name, *width):
        loaded.append(str(name))
        return as_model(name, *width)

    for room in (compare_models, compare_tasks):
        monkeypatch.setattr(room, "as_model", counted)

    def by_task(base, candidate):
        return compare_tasks.compare_task(base, candidate, held_out, "knn", {"label": "group"})

    for compared in (
        lambda base, candidate: mmtune.compare(base, candidate, held_out, retention=held_out),
        by_task,
        lambda base, candidate: mmtune.report(None, tmp_path / "r.html", base=base, candidate=candidate, data=held_out),
    ):
        with layer_calls(base) as single:
            compared(base, runs / "seed-0" / "artifact")
        with layer_calls(base) as of_three:
            compared(base, runs)
        assert of_three == single and single.total() > 0
    for compared in (lambda base, candidate: mmtune.compare(base, candidate, held_out), by_task):
        loaded.clear()
        compared("tiny:clip", runs)
        assert loaded == ["tiny:clip", *(str(runs / f"seed-{i}" / "artifact") for i in range(3))]


def test_a_difference_of_one_seed_alone_is_not_proven():
    """Each seed's interval over queries excludes 0, but the seeds differ more than their mean."""
    sure = [PairedDifference(0.5, 0.5 + d, d, (d - 0.01, d + 0.01), 5, 1, 40, 40) for d in (0.2, 0.02, 0.11)]
    got = mean_difference(sure)
    assert got.queries_interval[0] > 0.05 and got.interval[0] < 0 < got.interval[1]
    assert mean_difference(sure[:1]).interval == pytest.approx(sure[0].interval)  # one seed: the interval of its queries


def test_the_report_of_several_seeds(runs, held_out, tmp_path):
    done = mmtune.report(runs, tmp_path / "r.html", data=held_out, examples=1)
    page = (tmp_path / "r.html").read_text()
    whole = mmtune.compare("tiny:clip", runs, held_out, slices=[])
    spread = whole.directions[DIRECTION].seeds
    assert "Over 3 seeds" in page and done.verdict in ("pass", "fail", "inconclusive")
    assert f"{spread['mean']:+.4f}" in page and f"{spread['values'][2]:+.4f}" in page and "Searches" in page


def test_what_is_no_finished_directory_of_seeds(runs, root, held_out, tmp_path, capsys):
    (tmp_path / "seed-0").mkdir()
    with pytest.raises(ModelError, match="not finished; repeat"):
        mmtune.evaluate(tmp_path, held_out)
    with pytest.raises(ModelError, match=r"holds several seeds of a recipe; name the model of one, e.g. .*seed-0"):
        mmtune.load(runs)
    assert main(["eval", str(runs), held_out, "--trec", str(tmp_path / "trec")]) == 2
    assert "--trec" in capsys.readouterr().err
    assert spread_of([0.5])["sd"] is None
