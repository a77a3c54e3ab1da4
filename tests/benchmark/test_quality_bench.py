"""`mmtune bench quality` on small random towers: every method scores, cells are kept, and its numbers are those of other hands."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import mmtune
from mmtune.benchmark.quality_bench import METHODS
from mmtune.benchmark.quality_features import draw_shots, features_of, open_set
from mmtune.benchmark.quality_floors import base, clip_adapter, linear_probe, nearest_neighbours, pair_features
from mmtune.benchmark.quality_result import Cell, QualityResult
from mmtune.cli import main
from mmtune.errors import DataError, RecipeError
from mmtune.runtime.files import read_json
from tests.support import corpora

TOWERS = {"image": "tiny:image@1", "text": "tiny:text@2"}
SHORT = ["train.epochs=2", "train.batch_size=12", "train.warmup=0", "train.lr=1e-3"]
FLOORS = [m for m in METHODS if m not in ("mmtune", "sentence-transformers")]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A set: train of 48 rows, val of 16 others, and one class that val lacks."""
    root = tmp_path_factory.mktemp("shop")
    for part, rows, seed in (("train", 48, 0), ("val", 16, 1)):
        table = corpora.source(root / f"files-{part}", rows, seed, ("image", "text"))
        mmtune.pack(table, root / "shop" / part)
    return root / "shop"


def test_every_method_scores_and_the_next_call_only_reads(shop, tmp_path):
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("datasets")
    out = tmp_path / "out"
    result = mmtune.bench_quality({"shop": shop}, TOWERS, out, seeds=2, overrides=SHORT)
    assert [c.method for c in result.cells] == [m for m in METHODS for _ in range(2 if m in METHODS[1:3] else 1)]
    for cell in result.cells:
        assert set(cell.scores) == {
            "image->text hit@1",
            "image->text map",
            "text->image map",
            "image->image hit@1",
            "image->image recall@1",
        }
        assert all(0 <= v <= 1 for v in cell.scores.values()) and cell.rows == 48
    trained = [c for c in result.cells if c.method in ("mmtune", "sentence-transformers")]
    assert [c.pairs_seen for c in trained if c.method == "mmtune"] == [96, 96]
    # the peer's batches hold as many pairs as there are distinct captions; it takes more steps, whose pairs are counted
    assert all(96 * 0.9 <= c.pairs_seen <= 96 * 1.1 for c in trained)
    assert not (out / "run").exists()
    assert read_json(out / "quality.json") == json.loads(json.dumps(result.to_dict()))
    before = {p: p.stat().st_mtime_ns for p in (out / "cells").rglob("*.json")}
    assert len(before) == 9
    again = mmtune.bench_quality({"shop": shop}, TOWERS, out, seeds=2, overrides=SHORT)
    assert again == result and before == {p: p.stat().st_mtime_ns for p in (out / "cells").rglob("*.json")}


def test_methods_are_compared_query_by_query_and_over_the_seeds(shop, tmp_path):
    methods = ["base", "mmtune", "nearest neighbours"]
    result = mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=methods, seeds=2, overrides=SHORT)
    assert [(d.method, d.score) for d in result.differences[:5]] == [("base", s) for s in result.cells[0].scores]
    scores = {(c.method, c.seed): c.scores for c in result.cells}
    for d in result.differences:
        by_seed = [scores["mmtune", seed][d.score] - scores[d.method, 0][d.score] for seed in (0, 1)]
        assert d.difference.seeds["values"] == pytest.approx(by_seed, abs=2e-6)
        assert d.difference.interval[0] <= min(d.difference.queries_interval[0], np.mean(by_seed)) + 1e-9
        assert d.difference.clusters == d.difference.queries
    assert "mmtune minus the other method, paired by query" in result.markdown()
    (tmp_path / "cells" / "shop" / "all" / "base-0.npz").unlink()  # as of an earlier version
    again = mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=methods, seeds=2, overrides=SHORT)
    assert {d.method for d in again.differences} == {"nearest neighbours"}


def test_intervals_of_pieces_resample_their_recordings(tmp_path):
    """Five pieces of a recording are one cluster, without being asked for; a column can be named."""
    for part, seed in (("train", 0), ("val", 1)):
        table = corpora.source(tmp_path / f"files-{part}", 30, seed, ("image", "text"))
        lines = Path(table).read_text().splitlines()
        rows = [
            f"{line},{'recording' if i == 0 else f'r{(i - 1) // 5}'},{'side' if i == 0 else i % 2}"
            for i, line in enumerate(lines)
        ]
        Path(table).write_text("\n".join(rows))
        mmtune.pack(table, tmp_path / "set" / part)
    for cluster, count in ((None, 6), ("side", 2)):
        out = tmp_path / f"out-{cluster}"
        methods = ["base", "nearest neighbours", "mmtune"]
        result = mmtune.bench_quality(
            {"set": tmp_path / "set"}, TOWERS, out, methods=methods, seeds=1, overrides=SHORT, cluster=cluster
        )
        clusters = {d.score: d.difference.clusters for d in result.differences}
        assert clusters["image->text hit@1"] == clusters["image->image hit@1"] == count
        assert clusters["text->image map"] > 0


def test_settings_that_would_have_no_effect_are_refused(shop, tmp_path):
    """Another --cluster changed nothing in an OUT with results; keys that need validation were dropped."""
    methods = ["base"]
    mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=methods)
    with pytest.raises(RecipeError, match="holds results with other cluster; choose another --out"):
        mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=methods, cluster="shade")
    for override in ("retention={data: x, at_most: 0.1}", "train.patience=2", "interpolate=true"):
        with pytest.raises(RecipeError, match="is not used here, because val chooses nothing"):
            mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=methods, overrides=[override])
    for override in ("pairs=[[text, image]]", "model.image=tiny:image", "train.seed=1"):
        with pytest.raises(RecipeError, match="is set by the benchmark"):
            mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=methods, overrides=[override])
    argv = ["bench", "quality", "--data", f"shop={shop}", "--out", str(tmp_path / "x")]
    assert main([*argv, "--steps", "3"]) == 2 and main(["bench", "r.yaml", "--seeds", "2"]) == 2
    assert main(["bench", "r.yaml", "--image-tower", "tiny:image"]) == 2


def test_cells_that_are_missing_are_run_again(shop, tmp_path):
    first = mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=FLOORS)
    (tmp_path / "cells" / "shop" / "all" / "base-0.json").unlink()
    (tmp_path / "features" / "shop" / "val-image.npz").unlink()
    again = mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=FLOORS)
    assert [c.scores for c in again.cells] == [c.scores for c in first.cells]


def test_few_examples_are_drawn_by_seed_and_trained_alone(shop, tmp_path):
    result = mmtune.bench_quality(
        {"shop": shop}, TOWERS, tmp_path, methods=["base", "mmtune"], shots=[1], seeds=2, overrides=SHORT
    )
    assert [(c.shots, c.method, c.seed, c.rows) for c in result.cells] == [
        (1, m, seed, 6) for m in ("base", "mmtune") for seed in (0, 1)
    ]
    assert len(mmtune.open_data(str(tmp_path / "rows" / "shop" / "1-1"))) == 6
    groups = ["a", "a", None, "b", "a", "b"]
    drawn = [draw_shots(groups, 2, seed).tolist() for seed in range(20)]
    assert all(len(d) == 4 and d[-1] <= 5 and {3, 5} <= set(d) and 2 not in d for d in drawn)
    assert len({tuple(d) for d in drawn}) == 3 and drawn[3] == draw_shots(groups, 2, 3).tolist()


def test_scores_of_the_floors_are_those_of_their_own_predictions(shop, tmp_path):
    """hit@1 of the vectors is the accuracy of scikit-learn's classifier and of a plain vote."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    result = mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=["linear probe", "nearest neighbours"])
    scores = {c.method: c.scores["image->text hit@1"] for c in result.cells}
    opened = open_set("shop", shop, TOWERS)
    f = pair_features(features_of(None, opened, tmp_path / "features" / "shop", True), opened.sides)
    x, y, q, truth = f.train_signal.vectors, np.array(f.train_signal.groups), f.val.vectors, np.array(f.val.groups)
    scaler = StandardScaler().fit(x)
    probe = LogisticRegression(C=0.1, max_iter=200).fit(scaler.transform(x), y)
    assert scores["linear probe"] == pytest.approx((probe.predict(scaler.transform(q)) == truth).mean(), abs=1e-6)
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (q, x)]
    correct = 0
    for cosines, name in zip(unit[0] @ unit[1].T, truth, strict=True):
        votes: dict[str, float] = {}
        for i in np.argsort(-cosines)[:5]:
            votes[y[i]] = votes.get(y[i], 0) + np.exp(cosines[i] / 0.07)
        correct += max(votes, key=votes.get) == name
    assert scores["nearest neighbours"] == pytest.approx(correct / len(truth), abs=1e-6)
    for method in (linear_probe, nearest_neighbours):
        assert np.allclose(np.linalg.norm(method(f).queries.vectors, axis=1), 1, atol=1e-5)


def test_clip_adapter_learns_its_training_rows_and_keeps_the_captions(shop, tmp_path):
    opened = open_set("shop", shop, TOWERS)
    f = pair_features(features_of(mmtune.load(TOWERS), opened, tmp_path / "features", True), opened.sides)
    f = f._replace(val=f.train_signal)

    def log_probability(found):
        """Mean log-probability of the right class over all candidates, at CLIP-Adapter's logit scale."""
        logits = 100 * torch.from_numpy(found.queries.vectors @ found.candidates.vectors.T).double()
        right = torch.tensor([[c == g for c in found.candidates.groups] for g in found.queries.groups])
        return float((logits.masked_fill(~right, -torch.inf).logsumexp(1) - logits.logsumexp(1)).mean())

    state = torch.get_rng_state()
    before, after, again = base(f), clip_adapter(f), clip_adapter(f)
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(after.queries.vectors, again.queries.vectors)
    assert np.array_equal(after.candidates.vectors, before.candidates.vectors)
    assert log_probability(before) < log_probability(after)
    cosine = (after.queries.vectors * before.queries.vectors).sum(1)
    assert 0.5 < cosine.min() and cosine.max() < 1


@pytest.mark.parametrize(
    "heads",
    [
        {"image": {"init": "ridge", "ridge": 0.3}},
        {"image": {"init": "cca", "ridge": 0.2, "power": 0.5}, "text": {"init": "cca"}},
        {"text": {"init": "ridge", "ridge": 0.5}},
    ],
    ids=["ridge", "cca", "ridge of the language"],
)
def test_the_base_is_the_recipes_step_0(shop, tmp_path, heads):
    """The base's scores are those of a run whose heads are fitted but not trained."""
    given = [f"heads={json.dumps(heads)}"]
    base = mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path / "out", methods=["base"], overrides=given).cells[0]
    recipe = {
        "model": TOWERS,
        "pairs": [["text", "image"]],
        "data": {"train": str(shop / "train")},
        "heads": heads,
        "tune": {"image": "head", "text": "head"},
        "train": {"epochs": 1, "batch_size": 12, "lr": 1e-12},
        "run": {"dir": str(tmp_path / "run")},
    }
    evaluated = mmtune.evaluate(mmtune.train(recipe, quiet=True).artifact, str(shop / "val"))
    assert base.scores["image->image hit@1"] == pytest.approx(evaluated.directions["image->image"].metrics["hit@1"], abs=1e-6)
    assert base.scores["image->text hit@1"] == pytest.approx(evaluated.directions["image->text"].metrics["hit@1"], abs=1e-6)


def test_lines_and_the_table():
    def cell(method: str, seed: int, value: float) -> Cell:
        return Cell("shop", None, method, seed, {"image->text map": value}, 1.0, 2.0, 10, 0)

    result = QualityResult([cell("base", 0, 0.5), cell("mmtune", 0, 0.6), cell("mmtune", 1, 0.8)], {"peer": "not installed"})
    first, second = result.lines
    assert first.spread["image->text map"]["sd"] is None
    spread = second.spread["image->text map"]
    assert (spread["mean"], spread["sd"]) == (pytest.approx(0.7), pytest.approx(0.1414214))
    assert spread["high"] - spread["mean"] == pytest.approx(12.7062 * 0.1, rel=1e-4)  # t(1) x sd / sqrt(2)
    table = result.markdown()
    assert "| all | base | 1 | 0.500 | 0 | 1.0 | 2.0 |" in table
    assert "| all | mmtune | 2 | 0.700 ± 0.141 [-0.571, 1.971] | 0 | 1.0 | 2.0 |" in table
    assert table.endswith("- not run: peer: not installed\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "shop"], "--data shop: write NAME=DIR"),
        (["--data", "shop={shop}", "--data", "shop={shop}"], "the name shop occurs twice"),
        (["--data", "shop={shop}/train"], "has no train; pack it: mmtune pack train.csv"),
        (["--data", "shop={shop}", "--methods", "bas"], "--methods bas: no such method; did you mean 'base'?"),
        (["--data", "shop={shop}", "--shots", "1,x"], "--shots 1,x: write numbers"),
        (["--data", "shop={shop}", "--recipe", "shp=a.yaml"], "--recipe shp=...: no set has this name"),
        (["--data", "shop={shop}", "--seeds", "0"], "must be 1 or more"),
        ([], "--data: name at least one set"),
    ],
)
def test_what_is_wrong_is_one_line(shop, tmp_path, capsys, arguments, message):
    given = [a.replace("{shop}", str(shop)) for a in arguments]
    towers = [x for m, t in TOWERS.items() for x in (f"--{m}-tower", t)]
    assert main(["bench", "quality", *given, *towers, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) == 1


def test_sets_that_do_not_fit(shop, tmp_path):
    with pytest.raises(DataError, match="needs rows of two modalities with a tower"):
        mmtune.bench_quality({"shop": shop}, {"text": "tiny:text@2"}, tmp_path)
    table = corpora.source(tmp_path / "files", 12, 0, ("image", "text"))
    text = "\n".join(",".join(line.split(",")[:3]) for line in table.read_text().splitlines())
    table.write_text(text)
    for part in ("train", "val"):
        mmtune.pack(table, tmp_path / "alone" / part)
    with pytest.raises(DataError, match="the rows have no groups; pack both parts with --group COLUMN"):
        mmtune.bench_quality({"shop": tmp_path / "alone"}, TOWERS, tmp_path)


def test_results_of_other_settings_are_not_mixed(shop, tmp_path):
    mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=["base"])
    with pytest.raises(RecipeError, match="holds results with other towers; choose another --out"):
        mmtune.bench_quality({"shop": shop}, TOWERS | {"image": "tiny:image@3"}, tmp_path, methods=["base"])
    with pytest.raises(RecipeError, match="other overrides"):
        mmtune.bench_quality({"shop": shop}, TOWERS, tmp_path, methods=["base"], overrides=SHORT)


def test_an_option_of_quality_without_it(capsys):
    assert main(["bench", "recipe.yaml", "--shots", "1"]) == 2
    assert "--shots: is an option of `mmtune bench quality`" in capsys.readouterr().err
