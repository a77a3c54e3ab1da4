"""The probe finds a linear signal that is there, none that is not; the answer follows from what was measured."""

import json

import numpy as np
import pytest

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.paired_difference import PairedDifference
from mmtune.contracts import Embeddings
from mmtune.errors import RecipeError
from mmtune.quality.advise import ReindexCost, advise, baseline, decide, duration, parse_target, recipe_for, reindex_cost
from mmtune.quality.linear_probe import Probe, fit_head, probe
from tests.support.evaluate_helpers import picture, shards, unit


def features(kind, groups=60, each=6, dim=24, seed=0):
    """Two modalities of frozen features. "hidden": the group lies in few weak directions under loud nuisance; "absent": the
    group is not in them at all; "clear": nothing else is."""
    rng = np.random.default_rng(seed)
    n, group = groups * each, np.repeat(np.arange(1, groups + 1), each)
    code, out = rng.standard_normal((groups + 1, 6)), {}
    for m in "ab":
        x = rng.standard_normal((n, dim)) * (0.05 if kind == "clear" else 1.0)
        if kind != "absent":
            x[:, -6:] = code[group] + 0.15 * rng.standard_normal((n, 6))
        if kind == "hidden":
            x[:, :-6] *= 4
        e = Embeddings(
            [f"r{i:04d}" for i in range(n)], [f"g{g}" for g in group], {"id": np.arange(1, n + 1), "group": group}, unit(x)
        )
        e.labels[m] = np.arange(1, n + 1)
        out[m] = e
    return out


def test_the_probe_finds_a_hidden_signal_and_invents_none():
    hidden = probe(features("hidden"), ("a", "b"))
    assert hidden.change.interval[0] > 0.1 and not hidden.held_out_groups and hidden.rows == 360
    assert [s for s, _ in hidden.curve] == [0.25, 0.5, 1.0] and hidden.curve[-1][1] == pytest.approx(hidden.change.candidate)
    lows = [probe(features("absent", seed=s), ("a", "b")).change.interval[0] for s in range(6)]
    assert sum(low > 0 for low in lows) <= 1
    clear = probe(features("clear"), ("a", "b"))
    assert clear.change.base > 0.95 and abs(clear.change.difference) < 0.05


def test_the_probe_holds_out_groups_when_they_are_small_and_works_within_one_modality():
    vectors = features("hidden", groups=150, each=3)
    held_out = probe(vectors, ("a", "b"))
    assert held_out.held_out_groups and held_out.change.interval[0] > 0
    within = probe(features("hidden"), ("a", "a"))
    assert within.change.interval[0] > 0


def test_the_head_is_the_canonical_correlation():
    """With one row a thing and no shrinkage, mapped sides correlate by the square roots of the canonical correlations."""
    rng = np.random.default_rng(0)
    n, shared = 4000, rng.standard_normal((4000, 2))
    sides = [np.concatenate([shared + 0.5 * rng.standard_normal((n, 2)), rng.standard_normal((n, 3))], 1) for _ in range(2)]
    vectors = {
        m: Embeddings([str(i) for i in range(n)], [None] * n, {"id": np.arange(1, n + 1)}, x.astype(np.float32))
        for m, x in zip("ab", sides, strict=True)
    }
    head = fit_head(vectors, ("a", "b"), 0.0, 1.0)
    za, zb = ((vectors[m].vectors - head.centre[m]) @ head.map[m] for m in "ab")
    correlation = [np.corrcoef(za[:, i], zb[:, i])[0, 1] for i in range(2)]
    assert correlation == pytest.approx([0.8, 0.8], abs=0.03)  # 1 / (1 + 0.25)
    assert np.allclose(np.cov(za.T)[0, 1], 0, atol=1e-2)


def test_the_head_of_deficient_features_is_finite():
    """Fewer things than dimensions, and sides without any variance at all."""
    few = features("hidden", groups=5, each=12, dim=24)
    head = fit_head(few, ("a", "b"), 0.3, 1.0)
    assert head.map["a"].shape[1] <= 5 and all(np.isfinite(m).all() for m in head.map.values())
    few["a"].vectors[:] = few["b"].vectors[:] = few["a"].vectors[0]
    head = fit_head(few, ("a", "b"), 0.3, 1.0)
    assert all(np.isfinite(m).all() for m in head.map.values())
    assert probe(few, ("a", "b")).change.difference == 0


def change(base, difference, half, clusters=60):
    return PairedDifference(base, base + difference, difference, (difference - half, difference + half), 1, 1, 300, clusters)


def flat(base, half=0.02, clusters=60):
    return PairedDifference(base, base, 0.0, (base - half, base + half), 0, 0, 300, clusters)


@pytest.mark.parametrize(
    ("base", "head", "target", "per_group", "answer"),
    [
        (flat(0.7), change(0.7, 0.1, 0.02), 0.6, 5, "off-the-shelf"),
        (flat(0.5), change(0.5, 0.1, 0.02), 0.55, 5, "head"),
        (flat(0.5), change(0.5, 0.1, 0.02), None, 5, "head"),
        (flat(0.5), change(0.5, 0.1, 0.02), 0.8, 5, "LoRA"),
        (flat(0.5), change(0.5, 0.1, 0.02), 0.8, 200, "full"),
        (flat(0.5), change(0.5, 0.0, 0.02), None, 5, "LoRA"),
        (flat(0.99), change(0.99, 0.0, 0.01), None, 5, "off-the-shelf"),
        (flat(0.96), change(0.96, 0.0, 0.01), None, 5, "off-the-shelf"),
        (flat(0.94), change(0.94, 0.0, 0.01), None, 5, "LoRA"),
        (flat(0.5), change(0.5, 0.01, 0.2, 12), None, 5, "label more data"),
        (flat(0.5), change(0.5, 0.01, 0.03), None, 5, "LoRA"),
        (flat(0.5), change(0.5, 0.01, 0.03), 0.53, 5, "label more data"),
        (flat(0.5), change(0.5, 0.01, 0.03), 0.55, 5, "LoRA"),
        (flat(0.5, clusters=3), None, None, 5, "label more data"),
    ],
)
def test_answers(base, head, target, per_group, answer):
    head_probe = head and Probe(head, [(0.25, base.base), (0.5, base.base), (1.0, head.candidate)], False, 300)
    recommended, why, sources = decide(base, head_probe, target, per_group)
    assert recommended == answer and why.endswith(".")
    assert sources or answer not in ("LoRA", "full")
    assert all("arXiv" in s or "Spärck Jones 1974" in s for s in sources)
    assert target is not None or answer != "LoRA" or "Spärck Jones" in sources[0]


def test_costs_follow_from_rates():
    (towers,) = reindex_cost(3_600_000, 512, 100.0, 2.0).values()  # one cost: nothing maps stored vectors by a tuned head
    assert towers == ReindexCost(hours=10.0, gb_float32=pytest.approx(7.3728), gb_float16=pytest.approx(3.6864), price=20.0)
    assert [c.price for c in reindex_cost(1, 1, 1, None).values()] == [None]
    assert [duration(h) for h in (60.0, 2.5, 0.2873, 1e-4)] == ["2.5 days", "2.5 hours", "17.2 minutes", "0.36 seconds"]
    assert parse_target(None) == ("ndcg@10", None) and parse_target("map=0.5") == ("map", 0.5)
    with pytest.raises(RecipeError, match="METRIC=VALUE"):
        parse_target("map")
    with pytest.raises(RecipeError, match="no metric 'mop'"):
        baseline(features("clear", 5, 4), ("a", "b"), "mop")


def test_advise_verb(tmp_path, capsys):
    rng = np.random.default_rng(0)
    colours = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (180, 180, 40), (40, 180, 180), (180, 40, 180)]
    rows = [
        {"id": f"r{i}", "group": f"g{i % 6}", "png": picture(rng, colours[i % 6]), "txt": f"colour {i % 6} item {i}".encode()}
        for i in range(48)
    ]
    data = shards(tmp_path / "d", rows)
    argv = ["tiny:clip", data, "--corpus-size", "1000000", "--target", "ndcg@10=0.9", "--price-per-hour", "1.5", "--json"]
    assert dispatch("advise", argv) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["answer"] in ("off-the-shelf", "label more data", "head", "LoRA", "full") and document["why"]
    assert (
        document["baseline"]["queries"] == 48
        and document["corpus_size"] == 1_000_000
        and document["probe"]["interval"][0] <= document["probe"]["difference"]
    )
    towers = document["reindex"]["head, LoRA or full (all is embedded anew)"]
    assert document["direction"] == "text->image", "the index holds what cannot be typed"
    assert towers["hours"] == pytest.approx(1e6 / document["rates"]["image"] / 3600)
    assert towers["price"] == pytest.approx(1.5 * towers["hours"])
    assert dispatch("advise", ["tiny:clip", data, "--corpus-size", "5"]) == 0
    assert "this machine embeds" in capsys.readouterr().out


def test_towers_without_a_common_space_get_the_recipe_that_aligns_them(tmp_path):
    """The answer was decided by a baseline of random heads, and contradicted the recipe that was named beside it."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "id": f"r{i}",
            "group": f"g{i % 12}",
            "png": picture(rng, (i % 12 * 20, 40, 200)),
            "txt": f"colour {i % 12} item {i}".encode(),
        }
        for i in range(240)
    ]
    model = mmtune.load({"image": "tiny:image@1", "text": "tiny:text@2"})
    many = advise(model, shards(tmp_path / "d", rows), corpus_size=1000, target="ndcg@10=0.01")
    assert many.answer == "LoRA" and many.probe is None
    assert "240 pairs, 20 a group: low-rank adapters" in many.why and "by chance" in many.why
    assert many.recipe == (
        "mmtune init DIR --case catalog --encoders --size 240 --per-group 20, which writes recipes/catalog_pretrained.yaml: heads are "
        "fitted to the pairs before the first step (the numbers are those of DATA: give those of the training pairs, if they are others)"
    )
    few = advise(model, shards(tmp_path / "f", rows[:180]), corpus_size=1000)
    assert few.answer == "head" and "180 pairs are few" in few.why and "recipes/few_shot.yaml" in few.recipe
    one = advise(model, shards(tmp_path / "o", rows[:3]), corpus_size=1000)
    assert one.answer == "label more data" and one.recipe is None


def test_the_recipe_of_a_model_with_one_space_names_the_tuning():
    assert recipe_for("off-the-shelf", None, "catalog", 500, 40.0) is None
    assert recipe_for("full", None, "catalog", 500, 40.0).startswith(
        "mmtune init DIR --case catalog, and train it with tune=full train.lr=1e-5, because"
    )
