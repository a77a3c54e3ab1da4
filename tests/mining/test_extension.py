"""A miner source and a guard of somebody else's: in a module in the working directory, named by the options of a run."""

import json

import pyarrow.parquet as pq
import pytest

from mmtune.cli.dispatch import dispatch
from mmtune.data.pack.pack import pack
from mmtune.errors import RecipeError
from mmtune.mining import guards, register_guard, register_source, sources
from mmtune.mining.mine_vectors import mine_vectors
from mmtune.recipe.mining_block import MiningOptions
from tests.support import corpora
from tests.support.mining_helpers import corpus

MODULE = '''
import numpy as np
from mmtune.mining import CandidateBlock, MiningContext

class Neighbours:
    """The candidates whose numbers follow the query's."""

    def __init__(self, context: MiningContext) -> None:
        self.size = len(context.candidates)

    def propose(self, queries: np.ndarray) -> np.ndarray:
        return (queries[:, None] + np.arange(1, 5)) % self.size

class LastDigit:
    """Drops candidates whose id ends in the same digit as the query's."""

    name = "last_digit"

    def __init__(self, context: MiningContext) -> None:
        self.query, self.candidate = (np.array([i[-1] for i in x.ids]) for x in (context.queries, context.candidates))

    def drops(self, block: CandidateBlock) -> np.ndarray:
        return self.candidate[block.candidates] == self.query[block.queries][:, None]
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """own_mining.py in the working directory; the tables are as before afterwards."""
    (tmp_path / "own_mining.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "TABLE", dict(sources.TABLE))
    monkeypatch.setattr(guards, "TABLE", dict(guards.TABLE))
    assert len(MODULE.splitlines()) < 40


PLAIN = {"relative_margin": None, "hub_cap": None, "near_duplicates": False}


def options(source: str, guard: str, **more) -> MiningOptions:
    guards = {**PLAIN, "extra": [guard], **more}
    return MiningOptions(directions=["a->a"], negatives=2, window=3, sources=[source], guards=guards)


def test_both_work_by_path_and_by_name(module, tmp_path):
    data = corpus(40, 12, seed=2, grouped=0, shared=0)
    result = mine_vectors(data, tmp_path / "path.parquet", options("own_mining:Neighbours", "own_mining:LastDigit"))
    rows = pq.read_table(tmp_path / "path.parquet").to_pylist()
    ids = sorted(data["a"].ids, reverse=True)  # items are numbered by descending id
    follow = {q: {ids[(i + step) % 40] for step in (1, 2, 3)} for i, q in enumerate(ids)}
    assert {r["reason"] for r in rows} == {"own_mining:Neighbours"} and len(rows) == 80
    assert all(r["negative_id"] in follow[r["query_id"]] for r in rows)
    assert all(r["query_id"][-1] != r["negative_id"][-1] for r in rows)
    register_source("neighbours", "own_mining:Neighbours")
    register_guard("digit", "own_mining:LastDigit")
    again = mine_vectors(data, tmp_path / "name.parquet", options("neighbours", "digit"))
    by_name = [{**r, "reason": "own_mining:Neighbours"} for r in pq.read_table(tmp_path / "name.parquet").to_pylist()]
    assert by_name == rows and again.mined == result.mined == 80


def test_the_guard_is_counted_in_the_audit_and_spares_known_negatives(module, tmp_path):
    data = corpus(60, 12, seed=3, groups=4, grouped=1.0)
    for trust in (True, False):
        o = options("nearest", "own_mining:LastDigit", trust_groups=trust).model_copy(update={"negatives": 30, "window": 30})
        d = mine_vectors(data, tmp_path / "t.parquet", o).document["directions"]["a->a"]
        dropped = [r for r in pq.read_table(tmp_path / "t.parquet").to_pylist() if r["reason"] == "last_digit"]
        alone = d["dropped_alone"]["last_digit"]
        assert alone > 0 and all(r["query_id"][-1] == r["negative_id"][-1] for r in dropped)
        assert (d["dropped"]["last_digit"], d["spared_by_labels"]["last_digit"]) == ((0, alone) if trust else (alone, 0))
        assert d["suspected_false_negatives"] == d["dropped"]["last_digit"] and ("last_digit" in d["examples"]) != trust
        assert d["measured"]["guards"]["last_digit"]["dropped"] > 0


def test_the_verb_takes_them_and_messages_say_where_was_looked(module, tmp_path, capsys):
    pack(corpora.source(tmp_path / "source", 24), tmp_path / "data")
    argv = ["tiny:all", "data", "--out", "t.parquet", "--quiet", "--json", "--direction", "image->image", "--window", "4"]
    argv += ["--set", "sources=[nearest, own_mining:Neighbours]", "--set", "guards.extra=[own_mining:LastDigit]"]
    assert dispatch("mine", argv) == 0
    document = json.loads(capsys.readouterr().out)
    by_source = document["directions"]["image->image"]["mined_by_source"]
    assert set(by_source) == {"nearest", "own_mining:Neighbours"} and sum(by_source.values()) == document["mined"]
    data = corpus(10, 12)
    for source, guard, message in (
        ("nearst", "own_mining:LastDigit", "mining.sources: no miner source 'nearst'; did you mean 'nearest'"),
        ("nearest", "own_minin:LastDigit", f"mining.guards.extra: guard 'own_minin:LastDigit': no module .* nor in {tmp_path}"),
        ("nearest", "own_mining:LastDigits", "own_mining has no 'LastDigits'; did you mean 'LastDigit'"),
    ):
        with pytest.raises(RecipeError, match=message):
            mine_vectors(data, tmp_path / "x.parquet", options(source, guard))
    twice = options("nearest", "own_mining:LastDigit").model_copy(deep=True)
    twice.guards.extra.append("own_mining:LastDigit")
    with pytest.raises(RecipeError, match="another guard is already named 'last_digit'"):
        mine_vectors(data, tmp_path / "x.parquet", twice)
    assert not (tmp_path / "x.parquet").exists()
