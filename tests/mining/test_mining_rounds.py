"""Mining while training: rounds, tables of the user's own, the line when a metric falls."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmtune.data.shards.dataset import open_data
from mmtune.errors import DataError
from mmtune.mining.mine_vectors import mine_vectors
from mmtune.mining.mining_result import MiningResult
from mmtune.mining.mining_rounds import MiningRounds, metric_drop, negatives_per_query, round_epochs
from mmtune.recipe.mining_block import MiningOptions
from mmtune.run import train
from tests.support import corpora
from tests.support.mining_shop import content_vectors


@pytest.mark.precision
def test_training_takes_a_users_own_table(shop, tmp_path, capsys):
    import pyarrow as pa

    own = pa.table({"direction": ["text->image"] * 2, "query_id": ["row00", "row02"], "negative_id": ["row04", "row08"]})
    pq.write_table(own, tmp_path / "own.parquet")
    recipe = {
        "model": "tiny:clip",
        "data": {"train": str(shop)},
        "train": {"epochs": 1, "batch_size": 6},
        "mining": {"table": str(tmp_path / "own.parquet"), "use": {"negatives_per_query": 1, "confusable": 0}},
    }
    with pytest.raises(DataError, match="own.parquet does not store the fingerprint.*mining.allow_stale=true"):
        train(recipe | {"run": {"dir": str(tmp_path / "refused")}}, quiet=True)
    recipe["mining"]["allow_stale"] = True
    done = train(recipe | {"run": {"dir": str(tmp_path / "run")}})
    assert "used anyway, because stale tables are allowed" in capsys.readouterr().err
    del recipe["mining"]
    plain = train(recipe | {"run": {"dir": str(tmp_path / "plain")}}, quiet=True)
    assert done["fingerprint"] != plain["fingerprint"], "the table's negatives changed nothing"
    assert not (tmp_path / "run" / "mining").exists(), "nothing was mined"


def test_negatives_per_query_by_default_where_candidates_are_text():
    names = ["image->text", "text->image", "audio->image"]
    assert negatives_per_query(MiningOptions(), names) == {"image->text": 4, "text->image": 0, "audio->image": 0}
    assert negatives_per_query(MiningOptions(), names[2:]) == {"audio->image": 1}
    assert negatives_per_query(MiningOptions(use={"negatives_per_query": 2}), names) == dict.fromkeys(names, 2)
    own = MiningOptions(per_direction=[{"direction": "text->image", "negatives_per_query": 1, "negatives": 2}])
    assert negatives_per_query(own, names) == {"image->text": 4, "text->image": 1, "audio->image": 0}
    assert own.for_direction("text->image").negatives == 2


def test_rounds_mine_once_resume_and_report_a_falling_metric(shop, tmp_path, capsys):
    import mmtune

    data, model = open_data(shop), mmtune.load("tiny:clip")
    assert round_epochs(12, 3) == [3, 6, 9] and round_epochs(1, 3) == [0] and round_epochs(4, 3) == [1, 2, 3]

    def batches(epoch):
        return np.split(np.random.default_rng([0, epoch]).permutation(24), 4)

    options = MiningOptions(rounds=1, negatives=2, window=5, use={"negatives_per_query": 1, "confusable": 0.5})

    def rounds():
        return MiningRounds(
            model, data, batches, options, tmp_path, pairs=[("text", "image")], epochs=4, batch_size=6, quiet=False
        )

    one = rounds()
    assert one.plan(0)[0].tolist() == batches(0)[0].tolist() and one.extra(np.arange(3)) is None
    assert one.plan(1)[0].tolist() == batches(1)[0].tolist()
    mined = one.plan(2)
    assert sorted(np.concatenate(mined).tolist()) == list(range(24)) and len(mined) == 4
    assert set(one.extra(mined[0])) == {"image->text", "text->image"}
    stamp = (tmp_path / "round-0.parquet").stat().st_mtime_ns
    two = rounds()
    assert [b.tolist() for b in two.plan(3)] == [b.tolist() for b in one.plan(3)]
    for m, rows in one.extra(mined[0]).items():
        assert two.extra(mined[0])[m].tolist() == rows.tolist()
    assert (tmp_path / "round-0.parquet").stat().st_mtime_ns == stamp, "a resumed run does not mine again"
    values = iter([0.5, 0.4])
    watched = two.watch(lambda m: {"metric": next(values)})
    watched(model), watched(model)
    stderr = capsys.readouterr().err
    assert "fell from 0.5000 to 0.4000" in stderr and "round-0.parquet.audit.html" in stderr
    assert metric_drop("x", 0.4, 0.4, two.round.result) is None


def test_false_negatives_are_suspected_only_where_one_can_be(tmp_path):
    def result(unlabelled):
        counts = {"mined": 9, "mined_unlabelled": unlabelled, "mined_at_or_above_positive": 4, "suspected_false_negatives": 2}
        return MiningResult.beside(tmp_path / "t.parquet", 9, {"directions": {"text->image": counts}})

    assert "so false negatives are not the reason" in metric_drop("x", 0.5, 0.4, result(0))
    assert "perhaps because of false negatives. 3 of 9 mined negatives are not negatives by their groups" in metric_drop(
        "x", 0.5, 0.4, result(3)
    )


@pytest.mark.parametrize("trusted", [True, False])
def test_the_audit_counts_the_mined_pairs_that_no_label_calls_negative(shop, tmp_path, trusted):
    data = open_data(shop)
    guards = {"relative_margin": None, "near_duplicates": False, "hub_cap": None, "trust_groups": trusted}
    options = MiningOptions(guards=guards, negatives=2, window=5, directions=["image->text"])
    result = mine_vectors(content_vectors(data), tmp_path / "t.parquet", options, data=data)
    row = {i: n for n, i in enumerate(data.ids)}

    def labelled(row_id, m):
        return bool((data.labels["group"][data.labels[m] == data.labels[m][row[row_id]]] != 0).all())

    pairs = [r for r in pq.read_table(result.table).to_pylist() if r["verdict"] == "mined"]
    unlabelled = sum(not (labelled(r["query_id"], "image") and labelled(r["negative_id"], "text")) for r in pairs)
    part = result.document["directions"]["image->text"]
    assert part["mined"] == len(pairs) and part["mined_unlabelled"] == (unlabelled if trusted else len(pairs))


@pytest.mark.slow
@pytest.mark.precision
def test_the_study_of_mining_runs_and_resumes(tmp_path):
    """recipes/does_mining_help.py: every arm and seed, on all and on confusable queries; done runs are not done again."""
    data, recipe = corpora.packed(tmp_path), tmp_path / "r.yaml"
    recipe.write_text("model: ???\ndata:\n  train: ???\n  batches: spread\ntrain: {batch_size: 8}\n")
    script = Path(__file__).parents[2] / "recipes" / "does_mining_help.py"
    command = [sys.executable, script, recipe, "tiny:clip", data, data, "--out", tmp_path / "runs", "train.epochs=2"]

    def go(*more):
        done = subprocess.run([*map(str, command), *more], capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-2000:]
        lines = done.stdout.splitlines()
        return [json.loads(x) for x in lines if x[0] == "{"], [x for x in lines if "±" in x], done.stderr

    runs, table, stderr = go("--seeds", "0", "--mining", '{"rounds": 1}')
    assert [(x["arm"], x.get("seed")) for x in runs] == [("base", None), ("none", 0), ("naive", 0), ("guarded", 0)]
    assert set(runs[0]["confusable"]) == {"image->text", "text->image"} and len(table) == 8 and "mining round 1" in stderr
    again, _, stderr = go("--seeds", "0", "--mining", '{"rounds": 1}')
    assert again == runs and "mining round" not in stderr, "finished runs are read, not repeated"
