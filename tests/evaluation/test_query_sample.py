"""`eval --queries N`: the sampled queries have the ranks of a whole evaluation, and intervals cover the mean over all queries."""

import json
import subprocess
import sys

import numpy as np
import pytest

import mmtune
from mmtune.contracts import Embeddings
from mmtune.errors import RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.evaluation.query_sample import mean_interval, sample_queries
from tests.support import corpora


def vectors(n: int = 300, noise: float = 1.6, seed: int = 0) -> dict[str, Embeddings]:
    """Two modalities of the same rows, in groups of three; some content occurs twice, some rows have no group."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((n // 3 + 1, 16))[np.arange(n) // 3]

    def made(extra: float) -> np.ndarray:
        x = centre + extra * rng.standard_normal((n, 16))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)

    ids, groups = [f"r{i:04d}" for i in range(n)], [f"g{i // 3}" if i % 7 else None for i in range(n)]
    content = {m: np.where(np.arange(n) % 50 == 1, 1, np.arange(n) + 2).astype(np.int64) for m in ("image", "text")}
    return {m: Embeddings(ids, groups, {m: content[m]}, made(noise), "f") for m in ("image", "text")}


@pytest.mark.parametrize("chunk", [16, 4096])
def test_sampled_queries_have_their_values_of_a_whole_evaluation(chunk):
    data = vectors()
    whole = evaluate_vectors(data, per_query=True)
    part = evaluate_vectors(data, per_query=True, queries=40, chunk=chunk)
    for name, d in part.directions.items():
        full = whole.directions[name]
        assert d.candidates == full.candidates and d.queries + d.skipped == 40 and full.sampled_from is full.intervals is None
        assert d.sampled_from == full.queries + full.skipped
        at = [full.query_ids.index(i) for i in d.query_ids]
        assert len(set(at)) == d.queries
        for metric, values in d.values.items():
            assert np.array_equal(values, full.values[metric][at])
            assert d.metrics[metric] == pytest.approx(values.mean())
            low, high = d.intervals[metric]
            assert 0 <= low <= d.metrics[metric] <= high <= 1 and high - low < 0.4
    within = set(part.directions["image->image"].query_ids)  # fewer: an item is not relevant to itself
    assert within <= set(part.directions["image->text"].query_ids) and len(within) > 30
    every = evaluate_vectors(data, queries=10_000)
    assert every == evaluate_vectors(data)


def test_intervals_cover_the_mean_over_all_queries():
    rng = np.random.default_rng(0)
    for population in (rng.random(400) < 0.9, rng.random(400) ** 3, rng.normal(5, 2, 400)):
        values, n = population.astype(float), 60
        inside = 0
        for _ in range(400):
            low, high = mean_interval(rng.choice(values, n, replace=False), n / len(values))
            inside += low <= values.mean() <= high
        assert 0.925 <= inside / 400 <= 0.995
    low, high = mean_interval(np.ones(30), 0.01)
    assert high == 1 and 0.8 < low < 0.97  # all hits in the sample are no certainty
    assert mean_interval(np.ones(1), 0.1) is None


def test_the_sample_depends_on_the_modality_and_the_numbers_only():
    a, b = sample_queries("image", 100, 30), sample_queries("image", 100, 30)
    assert a.sum() == 30 and np.array_equal(a, b) and not np.array_equal(a, sample_queries("text", 100, 30))
    assert sample_queries("image", 100, None) is sample_queries("image", 30, 30) is None


def test_the_verb_the_function_and_what_they_refuse(tmp_path):
    data = corpora.packed(tmp_path, 40)
    argv = [sys.executable, "-m", "mmtune", "eval", "tiny:clip", data, "--queries", "12", "--quiet"]
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["directions"]["image->text"]
    assert found["queries"] <= 12 < found["sampled_from"] and found["intervals"].keys() == found["metrics"].keys()
    shown = str(mmtune.evaluate("tiny:clip", data, queries=12))
    assert shown.count("95% interval (sample of ") == 2  # there are no more than 12 different captions: all are used
    with pytest.raises(RecipeError, match="queries: 1 is not 2 or more"):
        mmtune.evaluate("tiny:clip", data, queries=1)
    with pytest.raises(RecipeError, match="queries: is an option of task retrieval"):
        mmtune.evaluate("tiny:clip", data, queries=9, task="knn")
