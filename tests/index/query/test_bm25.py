"""BM25 against a plain loop, and the fusion of ranked lists."""

import math
import re
import sys

import numpy as np
import pytest

from mmtune.errors import MissingExtra
from mmtune.index.query.bm25 import Bm25Index, reciprocal_rank_fusion

ITEMS = {
    "a": "red leather shoe with a red strap",
    "b": "red canvas shoe",
    "c": "blue leather bag",
    "d": "red canvas shoe",
    "e": "",
    "f": "grüne Tasche, Größe 42",
    "g": "blue shoe laces for every shoe in blue and for boots as well",
}


def bm25(query: str, k1: float = 1.5, b: float = 0.75) -> dict[str, float]:
    """Lucene's BM25 by its formula, over terms of two letters or more."""
    terms = {i: re.findall(r"\w\w+", t.lower()) for i, t in ITEMS.items()}
    mean = sum(map(len, terms.values())) / len(terms)
    scores = {}
    for i, document in terms.items():
        score = 0.0
        for q in re.findall(r"\w\w+", query.lower()):
            df = sum(q in w for w in terms.values())
            tf = document.count(q)
            idf = math.log(1 + (len(terms) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean)) if tf else 0
        if score > 0:
            scores[i] = score
    return scores


@pytest.mark.parametrize(
    "query", ["red shoe", "blue", "GRÖSSE tasche", "leather bag red", "shoe shoe", "nothing here", "", "?!"]
)
def test_bm25_is_that_of_the_formula_ties_by_descending_id(query):
    found = Bm25Index(list(ITEMS), list(ITEMS.values())).search(query, 10)
    expected = sorted(bm25(query).items(), key=lambda x: (round(x[1], 5), x[0]), reverse=True)
    assert [i for i, _ in found] == [i for i, _ in expected]
    assert np.allclose([s for _, s in found], [s for _, s in expected], rtol=1e-4)


def test_k_and_what_a_filter_admits():
    index = Bm25Index(list(ITEMS), list(ITEMS.values()))
    assert [i for i, _ in index.search("red canvas shoe", 1)] == ["d"]
    assert [i for i, _ in index.search("red canvas shoe", 10, among=["b", "a", "e", "unknown"])] == ["b", "a"]
    assert index.search("red", 0) == [] and index.search("red", 5, among=[]) == [] and len(index) == 7


@pytest.mark.parametrize("items", [[], ["", ""]])
def test_items_without_terms_are_not_found(items):
    assert Bm25Index([str(i) for i in range(len(items))], items).search("red", 5) == []


def test_reciprocal_rank_fusion_against_the_sum():
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["c", "d"], []])
    expected = {"a": 1 / 61, "b": 1 / 62, "c": 1 / 63 + 1 / 61, "d": 1 / 62}
    assert dict(fused) == expected and [i for i, _ in fused] == ["c", "a", "d", "b"]
    assert [i for i, _ in reciprocal_rank_fusion([["a"], ["b"]], weights=[1.0, 2.0])] == ["b", "a"]


def test_a_missing_bm25s_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingExtra, match=r'pip install "mmtune\[mining\]"'):
        Bm25Index(["a"], ["b"])
