"""`mmtune mine`: options, exit status, messages."""

import json

import pytest

from mmtune.cli import mine_verb
from mmtune.cli.dispatch import dispatch
from mmtune.errors import RecipeError


def test_the_verb(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mmtune.cli.dispatch.VERBS", {"mine": ""})
    out = str(tmp_path / "t.parquet")
    argv = [
        "tiny:clip",
        shop,
        "--out",
        out,
        "--quiet",
        "--set",
        "negatives=2",
        "--direction",
        "text->image",
        "--json",
        "--truth",
        "truth",
    ]
    assert dispatch("mine", argv) == 0
    document = json.loads(capsys.readouterr().out)
    d = document["directions"]["text->image"]
    assert (
        document["mined"] == d["mined"] > 0 and d["measured_by_truth"]["positives"] == 3
    )  # row 23's caption and two images, and one in the other direction
    assert "data:image" in open(document["page"]).read()
    assert dispatch("mine", [*argv[:-3], "--set", "guards.max_score=-2", "--set", "guards.trust_groups=false"]) == 1
    assert "the guards dropped all" in capsys.readouterr().out
    assert dispatch("mine", [*argv[:5], "--set", "guards.max_scor=1"]) == 2
    assert "guards.max_scor" in capsys.readouterr().err
    assert dispatch("mine", [*argv[:5], "--set", "table=own.parquet"]) == 2
    assert "own.parquet) names a table to train on" in capsys.readouterr().err
    with pytest.raises(RecipeError, match="KEY=VALUE"):
        mine_verb.mining_values(parsed(["m", "d", "--out", "o", "--set", "x"]))
    values = mine_verb.mining_values(
        parsed(["m", "d", "--out", "o", "--relative-margin", "off", "--memory", "99", "--seed", "3"])
    )
    assert values == {"guards": {"relative_margin": None}, "search": {"memory_mb": 99}, "seed": 3}


def parsed(argv):
    import argparse

    parser = argparse.ArgumentParser()
    mine_verb.arguments(parser)
    return parser.parse_args(argv)
