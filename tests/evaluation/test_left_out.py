"""Searches within a modality without rows of the query's own recording, against a plain loop."""

import numpy as np
import pytest

import mmtune
from mmtune.comparison.compare_vectors import compare_vectors
from mmtune.contracts import Embeddings
from mmtune.errors import RecipeError
from mmtune.evaluation import ranks
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.relevance.items import names_to_labels

ROWS = 90


@pytest.fixture(scope="module")
def clips():
    """Clips of recordings, three groups: neighbours are mostly of the same recording, some rows have none."""
    rng = np.random.default_rng(0)
    recording = rng.integers(0, 15, ROWS)
    vectors = rng.standard_normal((15, 8))[recording] + 0.5 * rng.standard_normal((ROWS, 8))
    vectors = np.round(vectors, 1)  # with ties
    unit = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ids = [f"{i:03d}" for i in range(ROWS)]
    groups = [f"g{r % 3}" for r in recording]
    labels = {"id": names_to_labels(ids), "group": names_to_labels(groups)}
    source = {i: None if n % 11 == 0 else f"r{r}" for n, (i, r) in enumerate(zip(ids, recording, strict=True))}
    return {"audio": Embeddings(ids, groups, labels, unit, "f")}, source


def by_hand(e, source):
    """(hit@1, MAP, number of queries) by sorting."""
    hits, precisions = [], []
    for q in range(ROWS):
        mine = source[e.ids[q]]
        others = [c for c in range(ROWS) if c != q and (mine is None or source[e.ids[c]] != mine)]
        scores = np.round(e.vectors.astype(np.float64) @ e.vectors[q].astype(np.float64) * 2**24)
        order = sorted(others, key=lambda c: (-scores[c], -int(e.ids[c])))
        right = [e.groups[c] == e.groups[q] for c in order]
        if any(right):
            hits.append(right[0])
            found = np.cumsum(right)
            precisions.append(np.mean([found[i] / (i + 1) for i in range(len(right)) if right[i]]))
    return np.mean(hits), np.mean(precisions), len(hits)


@pytest.mark.parametrize("many", [10**9, 1])
def test_rows_of_one_recording_are_no_candidates_for_each_other(clips, many, monkeypatch):
    monkeypatch.setattr(ranks, "MANY_CANDIDATES", many)
    vectors, source = clips
    hit, mean, queries = by_hand(vectors["audio"], source)
    for chunk in (7, 4096):
        d = evaluate_vectors(vectors, ks=(1,), exclude_same=source, chunk=chunk).directions["audio->audio"]
        assert (d.metrics["hit@1"], d.metrics["map"], d.queries) == (pytest.approx(hit), pytest.approx(mean), queries)
    usual = evaluate_vectors(vectors, ks=(1,)).directions["audio->audio"]
    assert usual.metrics["hit@1"] > hit + 0.2
    alone = evaluate_vectors(vectors, ks=(1,), exclude_same=dict.fromkeys(source)).directions["audio->audio"]
    assert alone.metrics == usual.metrics


def test_comparisons_leave_them_out_too(clips):
    vectors, source = clips
    found = compare_vectors(vectors, vectors, within=True, exclude_same=source, resamples=50)
    assert found.base.directions["audio->audio"].metrics["map"] == pytest.approx(by_hand(vectors["audio"], source)[1])


def test_only_candidates_within_a_modality_are_left_out(tmp_path):
    rows = [{"id": str(i), "text": f"clip {i}", "group": f"g{i % 2}", "recording": f"r{i // 2}"} for i in range(8)]
    plain = mmtune.evaluate("tiny:clip", rows, group="group")
    without = mmtune.evaluate("tiny:clip", rows, group="group", exclude_same="recording")
    assert plain.directions["text->text"].queries == without.directions["text->text"].queries == 8
    with pytest.raises(RecipeError, match="exclude_same: not together with trec"):
        mmtune.evaluate("tiny:clip", rows, group="group", exclude_same="recording", trec=tmp_path)
