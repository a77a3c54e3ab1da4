"""Model soups: the mean of weights and the greedy choice against plain loops; models that cannot be averaged are refused."""

import json

import numpy as np
import pytest
import torch

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.errors import MmtuneError
from mmtune.model import artifact
from mmtune.training.regularise.soup import soup
from tests.support import corpora


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Three runs of one base: its weights with a little noise each, one with a lot; validation rows that none was trained on."""
    root = tmp_path_factory.mktemp("soup")
    base = mmtune.load("tiny:clip")
    info = {
        "base": "tiny:clip",
        "base_fingerprint": base.fingerprint,
        "pairs": [["image", "text"]],
        "seen": [["image", "text"]],
    }
    for n, noise in enumerate((0.02, 0.04, 0.03, 3.0)):
        model = mmtune.load("tiny:clip")
        torch.manual_seed(n)
        with torch.no_grad():
            for p in model.parameters():
                p += noise * p.std() * torch.randn_like(p) if p.ndim > 1 else 0
        model.train().eval()
        artifact.save(model, root / f"m{n}", info=info, trained_on={"id": np.array([n + 1]), "image": np.array([n + 7])})
    return root


def score(model, data):
    result = mmtune.evaluate(model, data, within=False)
    return np.mean([result.metric("map", d) for d in ("image->text", "text->image")])


def mean(places):
    models = [artifact.load(p) for p in places]
    state = {k: torch.stack([m.state_dict()[k].double() for m in models]).mean(0).float() for k in models[0].state_dict()}
    models[0].load_state_dict(state)
    models[0].train().eval()
    return models[0]


def test_uniform_and_greedy_equal_plain_loops(place, tmp_path):
    data, paths = corpora.packed(place, 12, 1), [str(place / f"m{n}") for n in range(4)]
    done = soup(paths, data, tmp_path / "all", how="uniform")
    by_hand = mean(sorted(paths, key=lambda p: (-score(p, data), p)))
    found = artifact.load(done["artifact"])
    words = ["a red square", "a blue one"]
    np.testing.assert_allclose(found.encode(text=words), by_hand.encode(text=words), atol=1e-6)
    assert done["score"] == pytest.approx(score(by_hand, data), abs=1e-6) and found.info["soup_of"] == "uniform, by map"
    greedy = soup(paths, data, tmp_path / "good")
    taken, best = [], -1.0
    for path in sorted(paths, key=lambda p: (-score(p, data), p)):
        now = score(mean([*taken, path]), data)
        if now >= best:
            taken, best = [*taken, path], now
    assert [s["model"] for s in greedy["steps"] if s["taken"]] == taken and greedy["score"] == pytest.approx(best, abs=1e-6)
    assert greedy["score"] >= greedy["best_single"] == pytest.approx(max(score(p, data) for p in paths), abs=1e-6)
    soup_of = artifact.load(greedy["artifact"])
    assert soup_of.info["soup"] == taken and soup_of.info["seen"] == [["image", "text"]]
    rows = mmtune.evaluation.evaluate_model.trained_on(greedy["artifact"])
    assert set(rows["id"].tolist()) == {1 + int(p[-1]) for p in taken}


def test_the_command_and_its_error_messages(place, tmp_path, capsys):
    data, paths = corpora.packed(place, 12, 1), [str(place / f"m{n}") for n in range(2)]

    def said(*argv):
        status = dispatch("soup", [*map(str, argv)])
        return status, capsys.readouterr()

    status, out = said(*paths, "--data", data, "--out", tmp_path / "s", "--json")
    assert status == 0 and json.loads(out.out)["artifact"] == str(tmp_path / "s")
    artifact.save(artifact.load(paths[1]), tmp_path / "stranger", info={"base_fingerprint": "mm1-of-another-base"})
    wide = mmtune.load("tiny:clip").truncated(16)
    artifact.save(wide, tmp_path / "short", info={"base_fingerprint": artifact.load(paths[0]).info["base_fingerprint"]})
    rows = mmtune.open_data(data)
    info = artifact.load(paths[0]).info
    artifact.save(artifact.load(paths[0]), tmp_path / "seen", info=info, trained_on={"id": rows.labels["id"][:3]})
    for argv, message in (
        ([paths[0]], "needs two or more different models, but 1 are given"),
        ([paths[0], paths[0]], "but 1 are given"),
        ([*paths, "--how", "greddy"], "soup: unknown method 'greddy'; choose one of: greedy, uniform"),
        ([*paths, "--metric", "maps"], "no metric 'maps'"),
        ([paths[0], tmp_path / "stranger"], "was trained from another base than"),
        ([paths[0], tmp_path / "short"], "differ in settings"),
        ([paths[0], "tiny:all"], "differ in parts"),
        ([paths[0], tmp_path / "seen"], "seen was trained on 3 of these 12 rows"),
    ):
        status, out = said(*argv, "--data", data, "--out", tmp_path / "x")
        assert status == 2 and message in out.err and out.err.strip().count("\n") == 0, out.err
    assert not (tmp_path / "x").exists()
    with pytest.raises(MmtuneError, match="already exists"):
        soup(paths, data, tmp_path / "s")
    assert soup([paths[0], "tiny:clip"], data, tmp_path / "with-base", how="uniform")["steps"]  # the base is of its own base
