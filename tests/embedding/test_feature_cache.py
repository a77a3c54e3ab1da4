"""Stored features of a frozen tower: the same vectors as the tower, computed once per content."""

import numpy as np
import pytest

import mmtune
from mmtune.data.pack.pack import pack
from mmtune.data.shards.dataset import open_data
from mmtune.embedding import feature_cache
from mmtune.embedding.embed_rows import embed_data
from mmtune.embedding.feature_cache import FeatureCache, FeaturePreprocess
from mmtune.errors import DataError
from tests.support import corpora


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("features")
    pack(corpora.source(root / "source", 24), root / "data")
    return open_data(str(root / "data"))


def test_vectors_are_those_of_the_tower_and_each_content_runs_once(data, monkeypatch):
    model = mmtune.load("tiny:clip")
    names = list(model.towers)
    expected = embed_data(model, data, names)
    computed: list[int] = []
    compute = feature_cache.tower_features

    def counted(tower, preprocess, rows_of, rows, *more):
        computed.extend(rows)
        return compute(tower, preprocess, rows_of, rows, *more)

    monkeypatch.setattr(feature_cache, "tower_features", counted)
    own_towers = dict(model.towers)
    cache = FeatureCache(model, names)
    cache.store(data, quiet=True)
    assert len(computed) == sum(len(np.unique(data.labels[m])) for m in names)
    cache.store(data, quiet=True)
    embedded = cache.embed(model, data, names)
    assert len(computed) == sum(len(np.unique(data.labels[m])) for m in names), "nothing is computed twice"
    for m in names:
        np.testing.assert_allclose(embedded[m].vectors, expected[m].vectors, atol=1e-5)
        assert embedded[m].ids == expected[m].ids and model.towers[m] is cache.towers[m]
        assert embedded[m].fingerprint == expected[m].fingerprint != ""
    values = embed_data(model, data, names)  # the cached tower still encodes values that are not stored
    for m in names:
        np.testing.assert_allclose(values[m].vectors, expected[m].vectors, atol=1e-6)
    cache.close()
    assert all(model.towers[m] is own_towers[m] for m in names) and not any(cache.items.values())
    with pytest.raises(DataError, match="without stored features"):
        FeaturePreprocess()(None)


def test_caches_of_equal_towers_share_what_they_stored(data, monkeypatch):
    computed: list[int] = []
    compute = feature_cache.tower_features

    def counted(tower, preprocess, rows_of, rows, *more):
        computed.extend(rows)
        return compute(tower, preprocess, rows_of, rows, *more)

    monkeypatch.setattr(feature_cache, "tower_features", counted)
    content = len(np.unique(data.labels["text"]))
    with feature_cache.share_features():
        for _ in range(2):
            cache = FeatureCache(mmtune.load("tiny:clip"), ["text"])
            cache.store(data, quiet=True)
            assert len(cache.items["text"]) == content
            cache.close()
        assert len(computed) == content
    assert feature_cache.shared_features("text") is None
    cache = FeatureCache(mmtune.load("tiny:clip"), ["text"])
    assert not cache.items["text"]


def test_shared_outputs_are_not_computed_again(data, monkeypatch):
    model = mmtune.load("tiny:clip")
    tower, rows = model.towers["image"], list(range(8))
    with feature_cache.share_features():
        cache = FeatureCache(model, ["image"])
        cache.store(data, quiet=True)
        cache.close()
        monkeypatch.setattr(tower, "encode", None)
        shared = list(feature_cache.tower_features(tower, tower.preprocess, data, rows, model.device, True))
    monkeypatch.undo()
    for ours, theirs in zip(
        shared, feature_cache.tower_features(tower, tower.preprocess, data, rows, model.device, True), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
