"""`mmtune pairs logs`: counts against plain loops, a known click model, kinds of logs, and an interruption."""

import collections
import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import gamma, kendalltau, spearmanr

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.pairs.click_grades import GRADES, UNSURE
from tests.support.click_simulator import NAMES, simulate


def pairs_of(out):
    return pq.read_table(out / "pairs.parquet").to_pylist()


def judgments_of(out):
    return [json.loads(line) for line in (out / "judgments.jsonl").read_text().split("\n") if line]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    log = simulate(sessions=6000)
    path = tmp_path_factory.mktemp("log") / "log.parquet"
    pq.write_table(log.table(), path)
    return log, path


def by_loops(columns, exponent, min_clicks, min_impressions, prior):
    """The documented arithmetic, row by row."""
    n, c, e, skips = (collections.Counter() for _ in range(4))
    lists = collections.defaultdict(list)
    for q, sku, rank, clicked, session in zip(*(columns[x] for x in ("q", "sku", "rank", "clicked", "session")), strict=True):
        n[q, sku] += 1
        c[q, sku] += int(clicked)
        e[q, sku] += max(rank**-exponent, 0.02)
        lists[session].append((rank, q, sku, clicked))
    for shown in lists.values():
        last = max((rank for rank, *_, clicked in shown if clicked), default=0)
        for rank, q, sku, clicked in shown:
            skips[q, sku] += int(rank < last and not clicked)
    mean = c.total() / e.total()
    rate = {k: (c[k] + prior * mean) / (e[k] + prior) for k in n}
    best = {q: max(rate[k] for k in n if k[0] == q and n[k] >= min_impressions) for q, _ in n}
    grades = {}
    for k in n:
        if n[k] >= min_impressions and (c[k] >= min_clicks or (c[k] == 0 and skips[k] >= 3)):
            score = min(rate[k] / best[k[0]], 1)
            shape = c[k] + prior * mean
            certain = max(1 - 1 / (9 * shape) - 1.2816 / (3 * shape**0.5), 0) ** 3
            grades[k] = (sum(score >= g for g in GRADES) if c[k] else 0, score * certain, skips[k])
    return grades


def test_grades_weights_and_negatives_are_those_of_plain_loops(tmp_path):
    log = simulate(sessions=700, queries=8, items_per_query=9, shown=6, bots=0)
    pq.write_table(log.table(), tmp_path / "log.parquet")
    result = mmtune.pairs_from_logs(tmp_path / "log.parquet", tmp_path / "out", **NAMES, position_bias=0.8, prior=10)
    expected = by_loops(log.columns, 0.8, 2, 5, 10.0)
    pairs = pairs_of(tmp_path / "out")
    assert {(p["query"], p["item"]): (p["grade"], pytest.approx(p["weight"], rel=1e-5)) for p in pairs} == {
        k: (grade, weight) for k, (grade, weight, _) in expected.items() if grade and weight >= GRADES[0]
    }
    assert {(j["query"], j["item"]): j["grade"] for j in judgments_of(tmp_path / "out")} == {
        k: g for k, (g, *_) in expected.items()
    }
    for p in pairs:
        skipped = sorted((-s, i) for (q, i), (g, _, s) in expected.items() if q == p["query"] and g == 0 and s >= 3)
        assert p["negative_items"] == [i for _, i in skipped][:8]
    unsure = sum(grade > 0 and weight < GRADES[0] for grade, weight, _ in expected.values())
    assert unsure and [d["count"] for d in result.dropped if d["reason"] == UNSURE] == [unsure]
    assert len(pairs) == result.pairs > 30 and any(p["negative_items"] for p in pairs)


def test_corrected_grades_agree_better_with_the_truth_than_naive_ones(tmp_path, simulated):
    log, path = simulated
    tau, rho = {}, {}
    for how in ("estimate", "none"):
        result = mmtune.pairs_from_logs(path, tmp_path / how, **NAMES, position_bias=how)
        by_query = collections.defaultdict(list)
        for j in judgments_of(tmp_path / how):
            by_query[j["query"]].append((j["grade"], log.truth[j["query"], j["item"]]))
        tau[how] = np.mean([kendalltau(*zip(*v, strict=True)).statistic for v in by_query.values()])
        pairs = pairs_of(tmp_path / how)
        rho[how] = spearmanr([p["weight"] for p in pairs], [log.truth[p["query"], p["item"]] for p in pairs]).statistic
        if how == "estimate":
            assert result.measures["position_bias"]["examination"] == pytest.approx(log.examination, rel=0.25)
            assert result.measures["position_bias"]["exponent"] == pytest.approx(1, abs=0.1)
    assert tau["estimate"] > tau["none"] + 0.03 and tau["estimate"] > 0.85
    assert rho["estimate"] > rho["none"] + 0.08


def test_bots_are_left_out_and_counted(tmp_path, simulated):
    log, path = simulated
    kept = mmtune.pairs_from_logs(path, tmp_path / "kept", **NAMES, remove_bots=False)
    without = mmtune.pairs_from_logs(path, tmp_path / "without", **NAMES)
    bot_rows = int((log.columns["user"] >= 10_000_000).sum())
    counts = {(d["unit"], d["reason"]): d["count"] for d in without.dropped}
    assert counts["users", "a bot: more than 60 searches or clicks in a minute"] == 3
    assert counts["rows", "of a bot: more than 60 searches or clicks in a minute"] == bot_rows
    assert kept.measures["used_impressions"]["train"] - bot_rows == without.measures["used_impressions"]["train"]


def bots_log(rows):
    keys = ("user", "session", "q", "sku", "rank", "clicked", "ts")
    return pa.table({k: [r[i] for r in rows] for i, k in enumerate(keys)})


def test_each_kind_of_bot(tmp_path):
    rows = []
    for day in range(60):
        at = 1e9 + day * 86400
        for rank in (1, 2, 3):
            rows += [("all", f"a{day}", "boot", f"i{rank}", rank, True, at)]
            rows += [("place", f"p{day}", "boot", f"i{(rank + day) % 3}", rank, rank == 3, at)]
            rows += [("thing", f"t{day}", f"q{day}", f"i{rank if rank < 3 else 9}", rank, rank == 1 + day % 2 and False, at)]
            rows += [("human", f"h{day}", "boot", f"i{rank}", rank, rank == 1 + day % 3, at)]
        rows += [("thing", f"t{day}", f"q{day}", "x", 4 + day % 2, True, at)]
    pq.write_table(bots_log(rows), tmp_path / "log.parquet")
    result = mmtune.pairs_from_logs(tmp_path / "log.parquet", tmp_path / "out", **NAMES, position_bias="none")
    users = {d["reason"]: d["count"] for d in result.dropped if d["unit"] == "users"}
    assert users == {
        "a bot: clicked everything": 1,
        "a bot: all clicks at one rank below the first": 1,
        "a bot: all clicks on one item": 1,
    }
    assert {p["query"] for p in pairs_of(tmp_path / "out")} == {"boot"}


def test_a_reformulation_is_a_positive_of_the_query_before(tmp_path):
    rows = []
    for s in range(5):
        at = 1e9 + s * 86400
        rows += [(f"u{s}", f"s{s}", "sneaker red", f"i{r}", r, False, at) for r in (1, 2)]
        rows += [(f"u{s}", f"s{s}", "red trainers", f"t{r}", r, r == 2, at + 40) for r in (1, 2)]
        rows += [(f"v{s}", f"late{s}", "lamp", "l1", 1, False, at), (f"v{s}", f"late{s}", "desk", "d1", 1, True, at + 3000)]
    pq.write_table(bots_log(rows), tmp_path / "log.parquet")
    mmtune.pairs_from_logs(tmp_path / "log.parquet", tmp_path / "out", **NAMES, position_bias="none")
    found = {(p["query"], p["item"]): (p["grade"], p["source"]) for p in pairs_of(tmp_path / "out")}
    assert found == {
        ("red trainers", "t2"): (3, "clicks"),
        ("desk", "d1"): (3, "clicks"),
        ("sneaker red", "t2"): (1, "reformulation"),  # the lamp was half an hour before the desk, which is no reformulation
    }


def test_the_later_part_is_for_evaluation(tmp_path, simulated):
    log, path = simulated
    people = log.columns["user"] < 10_000_000
    border = float(np.quantile(log.columns["ts"][people], 0.75))
    by_time = mmtune.pairs_from_logs(path, tmp_path / "time", **NAMES, split_time=str(border))
    by_fraction = mmtune.pairs_from_logs(path, tmp_path / "fraction", **NAMES, eval_fraction=0.25)
    seconds = 30 * 86400
    assert by_fraction.measures["split_time"] == pytest.approx(border, abs=seconds * 1e-3)
    late = log.columns["ts"] >= border
    assert by_time.measures["used_impressions"] == {"eval": int((late & people).sum()), "train": int((~late & people).sum())}
    pairs = pairs_of(tmp_path / "time")
    for name, mine in (("train", ~late), ("eval", late)):
        p = next(p for p in pairs if p["split"] == name)
        rows = mine & people & (log.columns["q"] == p["query"]) & (log.columns["sku"] == p["item"])
        assert (p["impressions"], p["clicks"]) == (rows.sum(), log.columns["clicked"][rows].sum())
    evaluated = {(p["query"], p["item"]) for p in pairs if p["split"] == "eval"}
    judged = {(j["query"], j["item"]) for j in judgments_of(tmp_path / "time") if j["grade"]}
    assert evaluated < judged and len(judged - evaluated) <= sum(d["count"] for d in by_time.dropped if d["reason"] == UNSURE)
    with pytest.raises(DataError, match="no row of the log is after it"):
        mmtune.pairs_from_logs(path, tmp_path / "none", **NAMES, split_time="2031-01-01")


def test_csv_json_lines_and_events_are_the_same_log(tmp_path):
    log = simulate(sessions=300, queries=4, bots=0)
    rows = log.table().to_pylist()
    pq.write_table(log.table(), tmp_path / "log.parquet")
    with open(tmp_path / "log.csv", "w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({**r, "rank": r["rank"] - 1}) + "\n" for r in rows))
    events = [{"kind": "view", **{k: v for k, v in r.items() if k != "clicked"}} for r in rows]
    events += [
        {**e, "kind": "click", "rank": None, "ts": e["ts"] + 5} for e, r in zip(events, rows, strict=True) if r["clicked"]
    ]
    pq.write_table(pa.Table.from_pylist(events), tmp_path / "events.parquet")
    names = {k: v for k, v in NAMES.items() if k != "clicked"}
    for source in ("log.parquet", "log.csv", "log.jsonl"):
        mmtune.pairs_from_logs(tmp_path / source, tmp_path / f"out-{source}", **NAMES)
    mmtune.pairs_from_logs(tmp_path / "events.parquet", tmp_path / "out-events", **names, event="kind")
    expected = pairs_of(tmp_path / "out-log.parquet")
    assert len(expected) > 10
    for other in ("out-log.csv", "out-log.jsonl", "out-events"):
        assert pairs_of(tmp_path / other) == expected, other
        assert judgments_of(tmp_path / other) == judgments_of(tmp_path / "out-log.parquet")


def test_carts_and_orders_raise_the_grade(tmp_path):
    rows = [(f"u{s}", f"s{s}", "boot", i, r, True, 1e9 + s * 86400) for s in range(40) for r, i in ((1, "seen"), (2, "bought"))]
    table = bots_log([r if s % 2 else (*r[:5], False, r[6]) for s, r in enumerate(rows * 1)])
    bought = [r[3] == "bought" and int(r[1][1:]) % 4 == 0 for r in rows]
    pq.write_table(table.append_column("bought", pa.array(bought)), tmp_path / "log.parquet")
    mmtune.pairs_from_logs(
        tmp_path / "log.parquet", tmp_path / "out", **NAMES, position_bias="none", order="bought", min_clicks=1
    )
    [best] = [p for p in pairs_of(tmp_path / "out") if p["grade"] == 3]
    assert (best["item"], best["orders"]) == ("bought", 10)
    assert best["weight"] == pytest.approx(
        gamma.ppf(0.1, best["clicks"] + 40) / (best["clicks"] + 40), abs=0.01
    )  # 4 for each order


def test_a_killed_command_continues_to_the_same_result(tmp_path, simulated):
    _, path = simulated
    mmtune.pairs_from_logs(path, tmp_path / "whole", **NAMES)
    code = (
        "import os, signal, sys, mmtune.pairs.logs as logs\n"
        "stop = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if sys.argv[3]: setattr(logs, sys.argv[3], stop)\n"
        f"logs.pairs_from_logs(sys.argv[1], sys.argv[2], **{NAMES!r})\n"
    )
    for stage in ("make_skips", "judgment_sql"):
        done = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "out"), stage], env={**os.environ})
        assert done.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    mmtune.pairs_from_logs(path, tmp_path / "out", **NAMES)
    for name in ("pairs.parquet", "judgments.jsonl", "dropped.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


def test_the_command_says_what_it_did(tmp_path, simulated, capsys):
    _, path = simulated
    options = [x for role, column in NAMES.items() for x in (f"--{role}", column)]
    command = ["pairs", "logs", str(path), *options, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "examination by rank: 1.00, 0.5" in said and "a bot: more than 60" in said
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == len(pairs_of(tmp_path / "out"))
    assert main([*command, "--min-clicks", "3"]) == 2
    assert "--overwrite" in capsys.readouterr().err
