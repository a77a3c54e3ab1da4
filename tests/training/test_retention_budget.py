"""The forgetting budget: it holds where plain tuning breaks it; the loss equals a plain computation; killed and resumed, equal."""

import contextlib
import csv
import json

import numpy as np
import pytest
import torch

import mmtune
from mmtune.cli.dispatch import dispatch
from mmtune.comparison.gate import complete_gate, read_gate
from mmtune.comparison.retention import retention_difference
from mmtune.data.decode import decode_row
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, RecipeError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.recipe.gate_block import Gate
from mmtune.recipe.recipe import Recipe
from mmtune.training.callbacks import Callback
from mmtune.training.regularise.embedding_preservation import EmbeddingPreservation
from mmtune.training.retention_budget import RetentionBudget
from tests.support import corpora

COLUMNS = ("image", "text")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A base model that knows the colours of `general`, from 30 rows; the domain is the same pictures with permuted words."""
    root = tmp_path_factory.mktemp("retention")
    general = corpora.packed(root, 30, 0, COLUMNS)
    mmtune.train(recipe(root, "base", general, general, epochs=8, allow=True), quiet=True)
    for split, seed in (("train", 2), ("val", 3)):
        table = corpora.source(root / f"source-{split}", 24, seed, COLUMNS)
        rows = list(csv.DictReader(table.open()))
        names = list(corpora.COLOURS)
        for row in rows:
            row["group"] = names[(names.index(row["group"]) + 1) % len(names)]
            row["text"] = f"a {row['group']} square"
        with table.open("w", newline="") as f:
            out = csv.DictWriter(f, list(rows[0]))
            out.writeheader()
            out.writerows(rows)
        mmtune.pack(table, root / split)
    return root


def recipe(root, name, train_data, val_data, epochs=6, allow=False, model="tiny:clip", **more):
    document = {
        "model": model,
        "data": {"train": str(train_data), "val": str(val_data), "allow_trained": allow},
        "objective": [{"loss": "info_nce", "positives": "mask"}],
        "train": {"epochs": epochs, "batch_size": 6, "lr": 2e-3, "precision": "fp32", "metric": "map", "warmup": 0},
        "run": {"dir": str(root / name), "trackers": []},
    }
    for key, value in more.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    return document


def domain(root, name, **more):
    return recipe(root, name, root / "train", root / "val", model=str(root / "base" / "artifact"), **more)


def loss_of(root, name):
    """How much the artifact of a run loses of the base's MAP on the general data, by a comparison."""
    general = corpora.packed(root, 30, 1, COLUMNS)
    c = mmtune.compare(
        str(root / "base" / "artifact"),
        str(root / name / "artifact"),
        str(root / "val"),
        retention=general,
        gate=read_gate(root / name / "recipe.yaml"),
    )
    return -c.slices["retention"].difference, -c.slices["retention"].interval[0], c


def test_it_holds_where_plain_tuning_breaks_it(root):
    general = corpora.packed(root, 30, 1, COLUMNS)
    mmtune.train(domain(root, "plain"), quiet=True)
    plain, _, _ = loss_of(root, "plain")
    result = mmtune.train(domain(root, "kept", retention={"data": general, "at_most": 0.05, "weight": 5.0}), quiet=True)
    kept, high, comparison = loss_of(root, "kept")
    assert plain > 0.1 > 0.05 >= high >= kept, (plain, kept, high)
    assert comparison.gate.guards["retention"] == -0.05 and "guard 'retention'" not in comparison.reason
    points = json.loads((root / "kept" / "interpolation.json").read_text())
    chosen = next(p for p in points["points"] if p["coefficient"] == points["chosen"])
    assert chosen["values"]["retention drop high"] <= 0.05 and "retention loss of at most 0.05" in points["rule"]
    assert result.coefficient == points["chosen"]
    within = [p for p in points["points"] if p["values"]["retention drop high"] <= 0.05]
    assert chosen["domain"] == max(p["domain"] for p in within)
    assert points["points"][0]["values"]["retention drop high"] == 0.0  # the base itself loses nothing
    lines = [json.loads(x) for x in (root / "kept" / "metrics.jsonl").read_text().split("\n") if x]
    validated = [x for x in lines if "val selection" in x]
    assert len(validated) == 6 and any("preservation" in x for x in lines)
    for x in validated:
        high = x["val retention drop high"]
        assert x["val retention drop low"] <= x["val retention drop"] <= high
        assert x["val selection"] == (x["val metric"] if high <= 0.05 else -1 - high)
    best = max(x["val selection"] for x in validated)
    assert result.best[0]["metric"] == best


def test_the_gate_refuses_past_the_budget(root):
    general = corpora.packed(root, 30, 1, COLUMNS)
    (root / "gate.yaml").write_text(json.dumps({"model": "x", "retention": {"data": general, "at_most": 0.03}}))
    assert read_gate(root / "gate.yaml") == {"retention_loss": 0.03}
    if not (root / "plain" / "artifact").exists():
        mmtune.train(domain(root, "plain"), quiet=True)
    c = mmtune.compare(
        str(root / "base" / "artifact"),
        str(root / "plain" / "artifact"),
        str(root / "val"),
        retention=general,
        gate={"metric": "map", **read_gate(root / "gate.yaml")},
    )
    assert c.verdict in ("fail", "inconclusive") and "'retention'" in c.reason


@pytest.mark.slow
def test_resumed_after_a_kill_it_is_equal(root):
    general = corpora.packed(root, 30, 1, COLUMNS)
    kept = {"retention": {"data": general, "at_most": 0.05, "weight": 2.0}, "epochs": 3}

    class Killed(Exception):
        pass

    class Kill(Callback):
        def on_step(self, context, metrics):
            if context.step == 6:
                raise Killed

    whole = mmtune.train(domain(root, "whole", **kept), quiet=True)
    broken = domain(root, "broken", **kept, train={"checkpoint_every": 2})
    with pytest.raises(Killed):
        mmtune.train(broken, quiet=True, callbacks=[Kill()])
    resumed = mmtune.train(broken, resume=True, quiet=True)
    assert resumed.fingerprint == whole.fingerprint and resumed.coefficient == whole.coefficient


def test_the_preservation_loss_and_its_gradient(root):
    model, other = mmtune.load("tiny:clip"), mmtune.load(str(root / "base" / "artifact"))
    data = open_data(corpora.packed(root, 30, 1, COLUMNS))
    base = embed_data(other, data, list(COLUMNS))
    preprocess = {m: model.towers[m].preprocess for m in COLUMNS}
    loss = EmbeddingPreservation(data, base, preprocess, weight=3.0, batch_size=4, seed=7)
    model.train()
    value = loss.add_gradient(model, 5, contextlib.nullcontext)
    assert model.training and all(m.training for m in model.modules())
    gradient = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    now, expected = embed_data(model, data, list(COLUMNS)), []
    for m in COLUMNS:
        at = loss.rows[m][loss.drawn(m, 5)]
        assert len(set(at)) == 4 and len(set(data.labels[m][at])) == 4
        expected.append(np.mean([1 - float(now[m].vectors[i] @ base[m].vectors[i]) for i in at]))
    assert value == pytest.approx(np.mean(expected), abs=1e-5)
    model.zero_grad()
    model.eval()
    total = 0.0
    for m in COLUMNS:
        at = loss.rows[m][loss.drawn(m, 5)]
        z = model({m: preprocess[m].collate([preprocess[m](d) for d in decoded(data, m, at)])})[m]
        total = total + (1 - (z * torch.from_numpy(base[m].vectors[at])).sum(1)).mean() / 2
    (3 * total).backward()
    for a, b in zip(gradient, [p.grad for p in model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert (loss.drawn("image", 5) == loss.drawn("image", 5)).all() and (loss.drawn("image", 5) != loss.drawn("image", 6)).any()


def decoded(data, m, rows):
    return [decode_row(data, int(i), m) for i in rows]


@pytest.fixture(scope="module")
def recordings(root):
    """The general data with a column `recording`: six rows each, across colours."""
    table = corpora.source(root / "source-recordings", 36, 9, COLUMNS)
    rows = list(csv.DictReader(table.open()))
    with table.open("w", newline="") as f:
        out = csv.DictWriter(f, [*rows[0], "recording"])
        out.writeheader()
        out.writerows({**row, "recording": f"r{i // 6}"} for i, row in enumerate(rows))
    mmtune.pack(table, root / "recordings")
    return str(root / "recordings")


def test_the_interval_resamples_the_column_of_cluster(root, recordings):
    """The loss is that of groups, its interval that of a plain bootstrap over recordings, in training and in the gate."""
    base, other = (mmtune.load(m) for m in (str(root / "base" / "artifact"), "tiny:clip"))
    data = open_data(recordings)
    before, after = embed_data(base, data, list(COLUMNS)), embed_data(other, data, list(COLUMNS))
    directions = ["image->text", "text->image"]
    source = dict(zip(data.ids, data.column("recording"), strict=True))
    evaluated = evaluate_vectors(after, metrics=["map"], per_query=True).directions
    grouped = RetentionBudget(before, directions, "map", 0.05).scores(evaluated, 0.5)
    clustered = RetentionBudget(before, directions, "map", 0.05, source).scores(evaluated, 0.5)
    assert clustered["retention drop"] == pytest.approx(grouped["retention drop"])
    assert clustered["retention drop high"] != grouped["retention drop high"]
    expected = retention_difference(before, after, "map", source=source)
    assert expected.clusters > len(set(source.values())) - 1
    assert clustered["retention drop high"] == pytest.approx(-expected.interval[0])
    c = mmtune.compare(
        str(root / "base" / "artifact"),
        "tiny:clip",
        str(root / "val"),
        retention=recordings,
        gate={"metric": "map", "retention_loss": 0.05, "retention_cluster": "recording"},
    )
    assert c.slices["retention"].interval == pytest.approx(expected.interval)
    assert c.slices["retention"].clusters == expected.clusters


def test_the_cluster_of_a_budget_reaches_run_and_gate(root, recordings):
    budget = {"data": recordings, "at_most": 0.05, "cluster": "recording"}
    parsed = Recipe.parse(domain(root, "clustered", retention=budget))
    assert parsed.gate.retention_cluster == "recording" and parsed.gate.retention_loss == 0.05
    mmtune.train(domain(root, "clustered", retention=budget, epochs=1), quiet=True)
    assert read_gate(root / "clustered" / "recipe.yaml")["retention_cluster"] == "recording"
    lines = [json.loads(x) for x in (root / "clustered" / "metrics.jsonl").read_text().split("\n") if x]
    validated = next(x for x in lines if "val selection" in x)
    assert validated["val retention drop low"] <= validated["val retention drop"] <= validated["val retention drop high"]
    with pytest.raises(DataError, match=r"retention.cluster: .*'recordin'") as e:
        mmtune.train(domain(root, "bad", retention={**budget, "cluster": "recordin"}), quiet=True)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("gate", ["retention_loss: null", "retention_loss: null, retention_cluster: null, guards: {}"])
def test_null_in_the_gate_keeps_the_guard_of_the_budget(tmp_path, gate):
    """As in the recipe itself, where null is no choice: a budget without its guard would guard nothing."""
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: x\nretention: {{data: general, at_most: 0.03, cluster: machine}}\ngate: {{{gate}}}\n")
    read = read_gate(file)
    assert read["retention_loss"] == 0.03 and read["retention_cluster"] == "machine"
    completed = complete_gate(Gate.read(read), ["image->text", "text->image"], ["retention"])
    assert completed.guards["retention"] == -0.03
    file.write_text("model: x\nretention: {data: general, at_most: 0.03}\ngate: {retention_loss: 0.1}\n")
    assert read_gate(file) == {"retention_loss": 0.1}


def test_bad_budgets_are_refused(root, capsys):
    general = corpora.packed(root, 30, 1, COLUMNS)
    for more, message in (
        ({"retention": {"data": general, "at_most": 2}}, "at_most"),
        ({"retention": {"data": general}, "data": {"retention": "elsewhere"}}, "is not data.retention"),
        ({"retention": {"data": general}, "train": {"shard": True}}, "retention.weight"),
    ):
        with pytest.raises(RecipeError, match=message):
            Recipe.parse(domain(root, "bad", **more))
    few = corpora.packed(root, 4, 5, COLUMNS)
    with pytest.raises(DataError, match="has 4 clusters"):
        mmtune.train(domain(root, "few", retention={"data": few}), quiet=True)
    (root / "r.yaml").write_text(json.dumps(domain(root, "bad", data={"val": None}, retention={"data": general})))
    assert dispatch("train", [str(root / "r.yaml")]) == 2 and "needs data.val" in capsys.readouterr().err
