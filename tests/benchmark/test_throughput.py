"""`mmtune bench`: rates of a recipe on its own rows, and its bottleneck."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import mmtune
from mmtune.data.loader.loader import Loader
from mmtune.errors import RecipeError
from mmtune.training.loop import Trainer
from tests.support import corpora
from tests.support.http_server import http_server


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    root = tmp_path_factory.mktemp("bench-verb")
    data = {"train": corpora.packed(root), "val": corpora.packed(root, 12, 1)}
    train = {"epochs": 50, "batch_size": 8, "precision": "fp32", "checkpoint_every": 1}
    tune = {"image": "full", "text": {"how": "full", "head_first": 2.0}}
    return {"model": "tiny:clip", "data": data, "train": train, "tune": tune, "run": {"dir": str(root / "run")}}


def test_rates_of_a_few_steps_and_nothing_is_left(recipe, tmp_path):
    begin = time.perf_counter()
    speed = mmtune.bench(recipe, steps=5)
    seconds = time.perf_counter() - begin
    assert speed.steps == 5 and speed.batch_size == 8
    assert speed.embedding.keys() == {"image", "text"}
    assert all(v > 24 / seconds for v in (speed.loading, *speed.embedding.values()))  # each is a part of the whole
    assert speed.pairs_per_second > 5 * 8 / seconds and 0 <= speed.wait < 1 and speed.memory_mb > 50
    assert not Path(recipe["run"]["dir"]).exists()
    assert speed.stages.keys() == {"disk", "decode", "preprocess", "step"} and speed.workers >= 1
    assert speed.limit in speed.stages and all(v >= speed.loading * 0.5 for k, v in speed.stages.items() if k != "step")


SLOW = 0.3  # seconds a batch at least


def test_slow_loading_is_the_bottleneck(recipe, monkeypatch):
    """Loading a batch takes longer than any step so far took, however busy the machine is; rates are compared with what it took."""
    usual, step, loaded, stepped = Loader.batch, Trainer.step, [0.0], [0.0]

    def slow(self, *arguments):
        begin = time.perf_counter()
        time.sleep(max(SLOW, 2 * max(stepped)))
        batch = usual(self, *arguments)
        loaded.append(time.perf_counter() - begin)
        return batch

    def timed(self, batch):
        begin = time.perf_counter()
        outcome = step(self, batch)
        stepped.append(time.perf_counter() - begin)
        return outcome

    monkeypatch.setattr(Loader, "batch", slow)
    monkeypatch.setattr(Trainer, "step", timed)
    speed = mmtune.bench({**recipe, "data": {**recipe["data"], "workers": 1}}, steps=4)
    assert speed.bottleneck == "data" and speed.wait > 0.1 and "data.workers" in str(speed)
    assert 4 / max(loaded) < speed.loading < 8 / SLOW + 1 and speed.pairs_per_second < 8 / SLOW * 1.3


def test_the_verb_and_what_it_refuses(recipe, tmp_path, monkeypatch):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    argv = [sys.executable, "-m", "mmtune", "bench", str(file), "data.workers=1", "--steps", "2", "--json", "--quiet"]
    done = subprocess.run(argv, capture_output=True, text=True)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and document["steps"] == 2 and document["bottleneck"] in ("data", "towers")
    with pytest.raises(RecipeError, match="--steps 0"):
        mmtune.bench(recipe, steps=0)
    with pytest.raises(RecipeError, match="has 1 rows with both sides"):
        mmtune.bench({**recipe, "data": {"train": corpora.packed(tmp_path, 1)}})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="a single process"):
        mmtune.bench(recipe)


def test_bench_measures_the_model_that_the_recipe_trains(recipe, monkeypatch):
    """Prompts and window pooling change what is loaded and embedded: both are those of the recipe, as in `train`."""
    from mmtune.benchmark import throughput

    embedded, loaded = [], []
    rates, loading = throughput._embedding_rates, throughput._measure_loading

    def embedding_rates(model, data, quiet):
        embedded.append((dict(model.prompts), dict(model.window_pooling)))
        return rates(model, data, quiet)

    def measure_loading(whole, inputs, steps):
        loaded.append((dict(inputs.model.prompts), dict(inputs.model.window_pooling)))
        return loading(whole, inputs, steps)

    monkeypatch.setattr(throughput, "_embedding_rates", embedding_rates)
    monkeypatch.setattr(throughput, "_measure_loading", measure_loading)
    templates = {"text": {"default": ["a photo of {}"]}}
    mmtune.bench({**recipe, "prompts": templates, "window_pooling": {"image": "max"}, "tune": "full"}, steps=1)
    assert embedded == loaded == [(templates, {"image": "max"})]


@pytest.fixture(scope="module")
def small_shards(tmp_path_factory):
    """160 rows in shards of about eight, so that no buffer holds an epoch."""
    root = tmp_path_factory.mktemp("bench-shards")
    mmtune.pack(corpora.source(root / "files", 160, 0, ("image", "text")), root / "data", shard_size="8KB")
    assert len(list((root / "data").glob("*.tar"))) >= 10
    return root / "data"


@pytest.mark.parametrize("rate,limits", [(40_000, {"network"}), (0, {"network", "decode", "preprocess", "step"})])
def test_a_slow_server_is_named_as_the_limit(recipe, small_shards, rate, limits):
    """Also where rows that were read ahead hide it from the few steps that are measured. The advice names the cache of shards."""
    with http_server(small_shards, rate=rate, delay=0.05) as server:
        data = {"train": server.url + "/", "read": "stream", "cache_size": 0, "shuffle_buffer": 8}
        speed = mmtune.bench({**recipe, "data": data, "tune": "full"}, steps=4)
        assert server.sent > 0
    assert speed.limit in limits and speed.stages.keys() == {"network", "decode", "preprocess", "step"}
    if rate:
        assert speed.loading <= speed.stages["network"] < min(v for k, v in speed.stages.items() if k != "network")
        assert "limit: network" in str(speed) and "data.cache_size" in str(speed)
