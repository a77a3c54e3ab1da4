"""Scored pairs within one modality: what is packed is trained on, with the loss of a naive loop."""

import numpy as np
import pytest
import torch

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.data.shards.weighted_concat import WeightedConcat
from mmtune.errors import DataError, RecipeError
from mmtune.training.build_objective import build_objective
from mmtune.training.within_scores import scored_rows, within_score_lines
from tests.support.data_helpers import write_csv
from tests.support.losses_helpers import make_batch, unit

PAIR = [("text", "text")]
SCORES = [1.0, 0.25, 0.0, 0.5, 0.75, 0.0, 1.0, 0.3]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    root = tmp_path_factory.mktemp("scored")
    rows = [
        {"id": f"p{i}", "anchor": f"red thing {i}", "positive": f"thing {i} in red", "score": s} for i, s in enumerate(SCORES)
    ]
    pack(write_csv(root / "rows.csv", rows), root / "packed", score="score")
    return str(root / "packed")


def concat(packed, times=1):
    return WeightedConcat([open_data(packed)] * times, [1.0] * times)


def test_the_scores_of_the_pairs_are_found(packed):
    data = concat(packed)
    left, right, scores = scored_rows(data, "text")
    found = {(data.ids[a], data.ids[b]): float(s) for a, b, s in zip(left, right, scores, strict=True)}
    assert found == {(f"p{i}", f"p{i}~positive"): pytest.approx(s) for i, s in enumerate(SCORES)}
    (line,) = within_score_lines(["text"], data, [np.arange(len(data))])
    assert line.startswith("8 scored pairs within text: both values of 8 are in one batch")


@pytest.mark.parametrize("loss", ["mse", "cosine", "cosent"])
def test_the_loss_is_that_of_a_loop_over_the_pairs_of_the_batch(packed, loss):
    data = concat(packed)
    objective = build_objective([{"loss": loss}], PAIR, data=data)
    assert objective.columns == {}
    rows = [n for n, i in enumerate(data.ids) if i not in ("p1", "p4~positive")]  # two pairs are not complete
    content = data.labels["text"][rows]
    batch = make_batch([(0, int(c), 0, True) for c in content])
    batch.item_of_row, batch.labels = {"text": torch.arange(len(rows))}, batch.labels | {"text": torch.from_numpy(content)}
    z = unit(len(rows), 6, 1).requires_grad_()
    value, _ = objective({"text": z}, batch, lambda a, b: (torch.tensor(5.0), None))
    place = {data.ids[r]: n for n, r in enumerate(rows)}
    pairs = [(place[f"p{i}"], place[f"p{i}~positive"], s) for i, s in enumerate(SCORES) if i not in (1, 4)]
    cosines = [float(z[a].detach() @ z[b].detach()) for a, b, _ in pairs]
    scores = [s for *_, s in pairs]
    if loss == "mse":
        want = np.mean([(c - s) ** 2 for c, s in zip(cosines, scores, strict=True)])
    elif loss == "cosine":
        want = np.mean([1 - c if s >= 0.5 else max(0.0, c) for c, s in zip(cosines, scores, strict=True)])
    else:
        order = [(i, j) for i in range(6) for j in range(6) if scores[i] > scores[j]]
        want = np.log(1 + sum(np.exp(20 * (cosines[j] - cosines[i])) for i, j in order))
    assert float(value.detach()) == pytest.approx(want, rel=1e-4)
    value.backward()
    assert z.grad.abs().sum() > 0


def test_a_run_trains_on_them(packed, tmp_path, capsys):
    recipe = {
        "model": "tiny:clip",
        "data": {"train": packed, "batches": {"groups": 4, "rows": 2}},
        "pairs": [["text", "text"]],
        "objective": [{"loss": "cosent"}],
        "train": {"epochs": 15, "batch_size": 8, "lr": 3e-3, "precision": "fp32", "warmup": 0},
        "run": {"dir": str(tmp_path / "run"), "trackers": []},
    }

    def order(model):
        z = [model.encode(text=[f"red thing {i}", f"thing {i} in red"]) for i in range(len(SCORES))]
        return np.corrcoef([float(a @ b) for a, b in z], SCORES)[0, 1]

    result = mmtune.train(recipe, quiet=False)
    assert "8 scored pairs within text" in capsys.readouterr().err
    assert order(mmtune.load(result.artifact)) > order(mmtune.load("tiny:clip")) + 0.2


def test_scores_that_are_missing_or_out_of_range_are_one_line(packed, tmp_path):
    pack(write_csv(tmp_path / "plain.csv", [{"text": f"thing {i}", "group": i // 2} for i in range(8)]), tmp_path / "plain")
    with pytest.raises(
        RecipeError, match=r"objective\[0\]: within one modality \(\[text, text\]\) a score belongs to two rows"
    ):
        build_objective([{"loss": "cosent"}], PAIR, data=concat(str(tmp_path / "plain")))
    rows = [{"anchor": f"a {i}", "positive": f"b {i}", "score": 3 * i} for i in range(4)]
    pack(write_csv(tmp_path / "high.csv", rows), tmp_path / "high", score="score")
    with pytest.raises(DataError, match="column 'score' of row .* is 3, which is above 1"):
        build_objective([{"loss": "mse"}], PAIR, data=concat(str(tmp_path / "high")))
