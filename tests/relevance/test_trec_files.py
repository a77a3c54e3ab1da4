"""TREC files of relevance and of runs: other tools compute the same metrics from them."""

import ir_measures
import numpy as np
import pytest

from mmtune.errors import DataError
from mmtune.evaluation.directions import evaluate_vectors
from mmtune.relevance.trec_files import write_qrels, write_run
from tests.support.evaluate_helpers import corpus, measure


@pytest.mark.parametrize("pair", [("a", "b"), ("a", "a")])
@pytest.mark.parametrize("graded", [False, True])
def test_exported_run_and_judgments_score_the_same_elsewhere(tmp_path, pair, graded):
    rng = np.random.default_rng(3)
    vectors = corpus(rng, 50, 4, 8, content=60, coarse=True)
    ids = vectors["a"].ids
    qrels = {q: {d: int(rng.integers(0, 4)) for d in rng.choice(ids, 5)} for q in ids} if graded else None
    write_run(tmp_path / "run", vectors, pair, k=100)
    write_qrels(tmp_path / "qrels", vectors, pair, qrels)
    result = evaluate_vectors(vectors, pairs=[pair], qrels=qrels).directions["->".join(pair)]
    run = list(ir_measures.read_trec_run(str(tmp_path / "run")))
    truth = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels")))
    scored = ir_measures.calc_aggregate([measure(n) for n in result.metrics], truth, run)
    for name, value in result.metrics.items():
        assert scored[measure(name)] == pytest.approx(value, abs=1e-9), name


def test_ids_with_white_space_are_refused_not_mangled(tmp_path):
    vectors = corpus(np.random.default_rng(0), 5, 4, 2)
    for e in vectors.values():
        e.ids[0] = "two words"
    with pytest.raises(DataError, match="'two words' contains white space"):
        write_run(tmp_path / "run", vectors, ("a", "b"))
    assert list(tmp_path.iterdir()) == []
