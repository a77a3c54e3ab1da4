"""Mixing two embedding spaces is refused, in every way that it can happen, and the message names what differs."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mmtune.data.shards.dataset import open_data
from mmtune.embedding.embed_rows import embed_data
from mmtune.errors import DataError, ModelError
from mmtune.index import integrity
from mmtune.index.collection import Collection
from mmtune.index.item_vectors import fill_store
from mmtune.index.stores import create_store
from mmtune.model.artifact import load, save
from tests.support.corpora import packed
from tests.support.index_helpers import BASE, COLUMNS, OTHER, again, coll_fixture, picture, row, shelf_fixture  # noqa: F401


def pinned(coll, version="v1"):
    return coll.path / "models" / coll.layout.record(version)["fingerprint"]


def place(coll, version):
    return coll.layout.store_location(version, "image", coll.layout.record(version)["store"])


def refused(coll, match, version="v1"):
    """Neither a search nor a promotion gets through; the pointer stays."""
    fresh = again(coll)
    with pytest.raises((ModelError, DataError), match=match):
        fresh.search(text="a red square", version=version)
    with pytest.raises((ModelError, DataError), match=match):
        fresh.open(version).encode("text", ["x"])
    before = coll.layout.live()
    target = version if before["version"] != version else None
    if target:
        outcome = fresh.promote(version, force=True, why="I insist")
        assert not outcome["promoted"] and re.search(match, outcome["reasons"][0])
        assert fresh.layout.live() == before


def test_same_dimensions_other_weights(coll):
    """The pinned artifact was replaced by another model's, whole and valid."""
    shutil.rmtree(pinned(coll, "v2"))
    save(load("tiny:clip@8"), pinned(coll, "v2"))
    refused(
        coll, r"version v2 was embedded by mm3-.* what differs: weights: \d+ of \d+ \(.*files: 1 of 1 \(0/tiny.json\)", "v2"
    )


def test_same_weights_other_preprocessing(coll):
    """A file of the preprocessing was edited: the weights are the same."""
    file = next((pinned(coll, "v2") / "parts").rglob("tiny.json"))
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"mean": 0.5}))
    refused(coll, r"what differs: files: 1 of 1 \(0/tiny.json\)", "v2")


def test_same_files_other_code(coll, monkeypatch):
    """Nothing that is written down changed, but a library prepares images in another way: the canaries notice."""
    from mmtune.backbones.tiny import TinyImage

    real = TinyImage.__call__
    monkeypatch.setattr(TinyImage, "__call__", lambda self, s, rng=None: real(self, s.convert("L").convert("RGB"), rng))
    refused(coll, r"stored image inputs have another vector .*the code or a library", "v2")


def test_edited_settings(coll):
    """Another prompt in the artifact's manifest."""
    file = pinned(coll, "v2") / "mmtune.json"
    manifest = json.loads(file.read_text())
    manifest["layout"]["settings"]["prompts"] = {"text": {"query": ["a thing: {}"]}}
    file.write_text(json.dumps(manifest))
    refused(coll, r"what differs: settings: 1 of \d+ \(settings\)", "v2")


def test_edited_version(coll):
    """version.json claims the other version's fingerprint: same dimensions, and that model is there."""
    file = coll.layout.directory("v2") / "version.json"
    record = json.loads(file.read_text()) | {k: coll.layout.record("v1")[k] for k in ("fingerprint", "identity")}
    file.write_text(json.dumps(record))
    refused(coll, "canaries of another model", "v2")
    shutil.copy(coll.layout.directory("v1") / "canaries.safetensors", coll.layout.directory("v2"))
    refused(coll, "its image store holds vectors of 64 dimensions by mm3-", "v2")


def test_a_store_of_another_version(coll):
    shutil.rmtree(place(coll, "v2").directory)
    shutil.copytree(place(coll, "v1").directory, place(coll, "v2").directory)
    refused(coll, r"image store holds vectors of 64 dimensions by mm3-\w+, .*the model of v1; weights: ", "v2")


def test_an_adapter_was_swapped(coll, shelf, tmp_path):
    """Two fine-tunings of one base, a low-rank update each: everything but a few tensors is the same."""
    base, artifacts = load(BASE), []
    for seed in (1, 2):
        model = load(BASE)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            weight = model.state_dict()["parts.0.text.head.1.weight"]
            a, b = torch.randn(weight.shape[0], 2, generator=generator), torch.randn(2, weight.shape[1], generator=generator)
            weight += (0.05 * a @ b).to(weight.device)
        model.train().eval()
        artifacts.append(tmp_path / str(seed))
        save(model, artifacts[-1])
    assert base.fingerprint not in {load(m).fingerprint for m in artifacts}
    version = coll.build(str(artifacts[0]), quiet=True)["version"]
    shutil.rmtree(pinned(coll, version))
    shutil.copytree(artifacts[1], pinned(coll, version))
    refused(coll, r"what differs: weights: 1 of \d+ \(parts.0.text.head.1.weight\)", version)


def test_vectors_of_another_model(coll):
    """Query vectors come with their fingerprint, and it must be the version's."""
    a, b = coll.open("v1"), coll.open("v2")
    query = b.encode("text", ["a red square"])
    assert (
        coll.search_vectors(query, b.fingerprint, 3, version="v2")[0].ids
        == coll.search(text="a red square", k=3, version="v2").ids
    )
    for mark in (b.fingerprint, "", a.fingerprint + "0"):
        with pytest.raises(ModelError, match="not comparable"):
            coll.search_vectors(query, mark, 3)
    with pytest.raises(DataError, match="64 dimensions"):
        coll.search_vectors(query[:, :32], a.fingerprint, 3)
    for vectors in (3 * a.encode("text", ["x"]), np.full((1, 64), np.nan, np.float32)):  # another normalisation, or none
        with pytest.raises(DataError, match="a model's have 1"):
            coll.search_vectors(vectors, a.fingerprint, 3)


def test_vectors_written_by_another_program(coll, shelf):
    """All of them: a script re-embedded with another model into the same store, keeping its stamp. Detected at open."""
    other = embed_data(load(OTHER), open_data(shelf["data"]), ["image"])["image"]
    mark = coll.layout.record("v1")["fingerprint"]
    store = create_store(place(coll, "v1"), 64, mark)
    store.upsert(other.ids, other.vectors, [{} for _ in other.ids])
    store.build("flat")
    fresh = again(coll)
    with pytest.raises(ModelError, match=r"24 of 24 stored vectors are not what mm3-.*something else wrote into the store"):
        fresh.search(text="a red square")


def test_lengths_written_by_another_program(coll):
    """The right directions, and another length, e.g. a weight: scores would no longer be cosines."""
    file = next(place(coll, "v2").directory.glob("*.vectors.safetensors"))
    with safe_open(file, "numpy") as f:
        mark, arrays = f.metadata(), {k: f.get_tensor(k) for k in f.keys()}
    save_file({k: a * np.float32(1.5) for k, a in arrays.items()}, file, mark)
    refused(coll, r"24 of 24 stored vectors are not what mm3-.*cosine 1.0000, length 1.50\)", "v2")


def test_vectors_and_their_reference_written_by_another_program(coll):
    """A script put another model's vectors into the store and into the blocks, under the stamps that were there: what the
    canaries give now is not what is stored for them."""
    one, two = (coll.layout.record(v)["fingerprint"] for v in ("v1", "v2"))
    keys = coll.vector_cache(one, 64).keys("image")
    wrong = coll.vector_cache(two, 64).read("image", keys)
    shutil.rmtree(coll.path / "vectors" / one)
    coll.vector_cache(one, 64).write("image", keys, wrong)
    store = create_store(place(coll, "v1"), 64, one)
    fill_store(store, coll.vector_cache(one, 64), coll.catalog.changed(0), "image")
    store.build("flat")
    refused(coll, r"16 of 24 stored vectors are not what mm3-", "v1")  # half of the 32 canaries are pictures


def test_no_canaries(coll):
    save_file(
        {}, coll.layout.directory("v2") / "canaries.safetensors", {"fingerprint": coll.layout.record("v2")["fingerprint"]}
    )
    refused(coll, "contains no canaries", "v2")


@pytest.mark.parametrize("change", ["weights", "prompts"])
def test_a_model_that_was_changed_in_memory(coll, change):
    """Code trains the very object that the collection holds, or sets a prompt on it."""
    opened = coll.open("v1")
    coll.search(text="a red square")
    if change == "weights":
        with torch.no_grad():
            next(opened.model.parameters()).add_(1)
    else:
        opened.model.set_prompts({"text": {"query": ["find: {}"]}})
    with pytest.raises(ModelError, match="its model was changed in memory"):
        coll.search(text="a green square")
    assert "changed in memory" in coll.upsert([row("n", "red", 5)])["behind"]["v1"]
    fresh = again(coll)
    assert fresh.updates.update_all() == {}  # by the pinned model
    assert fresh.search(image=picture("red", 5), k=1).ids == ["n"]


def test_a_model_in_memory_is_another_once_it_was_trained(coll):
    """Given to build again after its weights were changed, in eval mode all the time."""
    model = load(BASE)
    assert coll.build(model, quiet=True)["fingerprint"] == coll.layout.record("v1")["fingerprint"]
    with torch.no_grad():
        next(model.parameters()).add_(1)
    done = coll.build(model, quiet=True)
    assert done["fingerprint"] != coll.layout.record("v1")["fingerprint"] and done["embedded"] == 24


def test_items_of_an_older_backup(coll):
    """An older items.sqlite beside newer versions: sequence numbers would be used twice, and new items be lost."""
    shutil.copytree(coll.path / "corpus", coll.path / "old")
    coll.upsert([row("n", "red", 5)])
    coll.close()
    shutil.rmtree(coll.path / "corpus")
    (coll.path / "old").rename(coll.path / "corpus")
    refused(coll, r"v2 contains 2 changes of the items, but .*items.sqlite has only 1", "v2")
    for write in (lambda c: c.upsert([row("m", "blue", 6)]), lambda c: c.delete(["0-001"])):
        with pytest.raises(DataError, match="bring back the newer one"):
            write(again(coll))


def test_a_version_of_another_collection(coll, shelf, tmp_path):
    """The same model, other items: the directory of its version was copied here."""
    with Collection(tmp_path / "other", create=True) as other:
        other.build(OTHER, packed(shelf["root"], 12, 1, COLUMNS), quiet=True)
    shutil.rmtree(coll.layout.directory("v2"))
    shutil.copytree(tmp_path / "other/versions/v1", coll.layout.directory("v2"))
    refused(coll, "v2 is a copy of v1", "v2")
    file = coll.layout.directory("v2") / "version.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": "v2"}))
    refused(coll, "12 vectors in the store, 24 items in the catalog", "v2")


def test_one_vector_and_one_item_written_by_another_program(coll, monkeypatch):
    monkeypatch.setattr(integrity, "SAMPLE", 0)  # none of the sample happens to be it: opening sees nothing, promoting does
    store = coll.open("v2").stores["image"]
    wrong = -store.fetch(["0-005"])
    store.upsert(["0-005"], wrong, [{}])
    assert again(coll).search(text="x", version="v2").results
    outcome = again(coll).promote("v2", force=True, why="never mind")
    assert not outcome["promoted"] and "'0-005', cosine -1.0000" in outcome["reasons"][0]
    store.upsert(["0-005"], -wrong, [{}])
    store.upsert(["stranger"], wrong, [{}])
    with pytest.raises(ModelError, match="25 vectors in the store, 24 items in the catalog"):
        again(coll).search(text="x", version="v2")
    store.delete(["0-004"])  # the counts agree again
    outcome = again(coll).promote("v2", force=True, why="never mind")
    assert not outcome["promoted"] and "1 items are not in the store, e.g. '0-004'" in outcome["reasons"][0]


def test_a_vector_cache_of_another_model(coll):
    """Blocks of another model under a new model's name: by their stamp, and, where that was edited too, by the canaries."""
    old, new = coll.layout.record("v1")["fingerprint"], load("tiny:clip@9").fingerprint
    root = coll.path / "vectors"
    shutil.copytree(root / old, root / new)
    with pytest.raises(ModelError, match=f"vectors of another model \\({old}, not {new}\\)"):
        coll.build("tiny:clip@9", quiet=True)
    for file in (root / new).rglob("*.safetensors"):
        save_file(load_file(file), file, {"fingerprint": new})
    with pytest.raises(ModelError, match=r"\d+ of \d+ vectors on disk are not what mm3-.*remove that directory"):
        again(coll).build("tiny:clip@9", quiet=True)
    assert coll.layout.versions() == ["v1", "v2"]
    shutil.rmtree(root / new)
    assert again(coll).build("tiny:clip@9", quiet=True)["version"] == "v3"


def test_a_damaged_block_is_named(coll):
    file = next((coll.path / "vectors" / coll.layout.record("v1")["fingerprint"]).rglob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match=f"{file.name}.*embedded again"):
        again(coll).build(BASE, index="flat", quiet=True)


def test_cached_query_vectors_belong_to_a_model(coll):
    """The same caption, searched on both versions in turn through one cache, has two vectors."""
    for _ in range(2):
        one, two = (coll.open(v).encode("text", ["a red square"])[0] for v in ("v1", "v2"))
        assert float(one @ two) < 0.9
        assert np.array_equal(one, load(BASE).encode(text="a red square", role="query"))


def test_the_prompt_is_part_of_the_space(coll, tmp_path):
    model = load(BASE)
    model.set_prompts({"text": {"query": ["find: {}"]}})
    save(model, tmp_path / "m")
    done = coll.build(str(tmp_path / "m"), quiet=True)
    assert done["fingerprint"] != coll.layout.record("v1")["fingerprint"] and done["embedded"] == 24
    query = coll.open(done["version"]).encode("text", ["red"])[0]
    assert np.allclose(query, load(BASE).encode(text="find: red"), atol=1e-6)


def test_a_prefix_is_a_space_of_its_own(coll):
    done = coll.build(BASE, dim=16, quiet=True)
    assert coll.layout.record(done["version"])["dim"] == 16
    assert coll.search(text="red", version=done["version"], k=1).fingerprint != coll.search(text="red", k=1).fingerprint
    assert coll.upsert([row("n", "red", 5)])["behind"] == {}
    assert coll.search(image=picture("red", 5), version=done["version"], k=1).ids == ["n"]


def test_a_broken_version_does_not_hold_up_the_others(coll):
    shutil.rmtree(pinned(coll, "v2"))
    done = again(coll).upsert([row("n", "red", 5)])
    assert list(done["behind"]) == ["v2"] and "damaged" in done["behind"]["v2"]
    assert again(coll).search(image=picture("red", 5), k=1).ids == ["n"]
    assert [v["behind"] for v in coll.versions()] == [0, 1]
