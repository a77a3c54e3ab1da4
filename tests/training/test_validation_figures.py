"""Figures of a validation: the numbers in them against loops, and the drawing against the pixels it has to set."""

import json

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.modalities.draw_figures import COLOURS, heatmap_figure, histograms_figure, lines_figure
from mmtune.relevance.items import unique_items
from mmtune.training.validation_figures import loss_terms, pair_scores, validation_figures


def embeddings(name, seed, rows=30, groups=5):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, 8)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    ids, group = [f"r{i:02d}" for i in range(rows)], [f"g{i % groups}" for i in range(rows)]
    labels = {
        name: np.arange(1, rows + 1),
        "group": np.array([1 + i % groups for i in range(rows)]),
        "id": np.arange(101, 101 + rows),
    }
    return Embeddings(ids, group, labels, z)


def test_scores_of_matching_and_other_pairs_equal_a_loop():
    left, right = embeddings("image", 0), embeddings("text", 1)
    a, b = unique_items("image", left), unique_items("text", right)
    for queries, candidates, within in ((a, b, False), (a, a, True)):
        matching, others = [], []
        for i in range(30):
            for j in range(30):
                if within and i == j:
                    continue
                score = float(left.vectors[i] @ (left if within else right).vectors[j])
                (matching if i % 5 == j % 5 else others).append(score)
        got = pair_scores(queries, candidates)
        assert np.allclose(np.sort(got[0]), np.sort(matching), atol=1e-6)
        assert np.allclose(np.sort(got[1]), np.sort(others), atol=1e-6)


def test_loss_terms_of_the_log(tmp_path):
    lines = [
        {"step": 1, "epoch": 0, "loss": 2.0, "info_nce": 1.5, "lr": 0.1, "grad_norm": 3.0},
        {"step": 1, "epoch": 0, "val metric": 0.5},
        {"step": 2, "epoch": 0, "loss": 1.0, "info_nce": 0.5, "lr": 0.1, "grad_norm": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    terms = loss_terms(tmp_path / "metrics.jsonl")
    assert set(terms) == {"loss", "info_nce"} and [v.tolist() for v in terms["info_nce"]] == [[1, 2], [1.5, 0.5]]
    assert loss_terms(tmp_path / "none.jsonl") == {}


def test_what_the_data_do_not_allow_is_left_out(tmp_path):
    vectors = {"image": embeddings("image", 0, groups=30), "text": embeddings("text", 1, groups=30)}
    items = {m: unique_items(m, e) for m, e in vectors.items()}
    pairs = [("image", "text"), ("image", "image")]
    found = validation_figures(vectors, items, pairs, tmp_path / "none.jsonl")
    assert {"figures scores image-text", "figures similarity image-text"} <= set(found)
    assert "figures loss terms" not in found and "figures scores image-image" not in found  # no image has a partner


def test_figures_show_their_values():
    heat = np.asarray(heatmap_figure("t", np.array([[0.0, 1.0], [0.5, 0.0]]), ["a", "b"], ["c", "d"]))
    assert tuple(heat[152, 152]) == (255, 255, 255) and tuple(heat[152, 152 + 24]) == (8, 69, 148)
    lines = np.asarray(lines_figure("t", {"x": (np.array([0, 10]), np.array([1.0, 1.0]))}, "step"))
    middle = (lines == np.array(COLOURS[0])).all(2)[60:-40]
    assert middle.any(0)[70:620].all()  # a flat line over the whole width
    values = {"matching": np.full(10, 0.9), "other": np.full(30, 0.1)}
    histogram = np.asarray(histograms_figure("t", values, "cosine"))
    columns = [np.flatnonzero((histogram == np.array(c)).all(2)[60:-40].any(0)) for c in COLOURS[:2]]
    assert columns[0].max() > 600 and columns[1].min() < 90
