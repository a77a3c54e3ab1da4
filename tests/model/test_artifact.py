"""A frozen model: the same vectors after a trip to disk, and no way to mistake it for another."""

import json
import shutil

import numpy as np
import pytest
import torch

import mmtune
from mmtune.errors import DataError, ModelError
from mmtune.model.artifact import save
from mmtune.model.artifact.trained_rows import union, with_row_counts
from tests.support import checkpoints, corpora

TEXTS = ["a red bag", "a photo of a dog"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("artifacts")
    return {
        "clip": f"hf:{checkpoints.clip(root / 'clip')}",
        "siglip": f"hf:{checkpoints.siglip(root / 'siglip')}",
        "clap": f"hf:{checkpoints.clap(root / 'clap')}",
        "fused": f"hf:{checkpoints.clap(root / 'fused', fused=True)}",
        "text": f"hf:{checkpoints.text_encoder(root / 'text', 'max')}",
        "open_clip": f"open_clip:{checkpoints.open_clip_dir(root / 'open_clip')}",
        "siglip_like": f"open_clip:{checkpoints.open_clip_dir(root / 'oc_siglip', init_logit_bias=-10.0)}",
        "tiny": "tiny:all",
        "composed": f"image=hf:{root / 'clip'},audio=tiny:audio,text=hf:{root / 'text'}",
    }


ALL = ["clip", "siglip", "clap", "fused", "text", "open_clip", "siglip_like", "tiny", "composed"]


@pytest.mark.parametrize("name", ALL)
def test_round_trip_keeps_vectors_scales_and_fingerprint(made, tmp_path, name):
    model = mmtune.load(made[name])
    pairs = [("image", "audio")] if {"image", "audio"} <= set(model.towers) else []
    model.ensure_logit_scales(pairs)
    with torch.no_grad():  # as if tuned
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    model.train(), model.eval()
    mark = save(model, tmp_path / "a", metrics={}, info={"base": name}, trained_on={"id": np.array([0, 5, 5, 9])})
    again = mmtune.load(tmp_path / "a")
    assert again.fingerprint == mark == model.fingerprint != mmtune.load(made[name]).fingerprint
    np.testing.assert_array_equal(again.encode(text=TEXTS), model.encode(text=TEXTS))
    for d in model._scales:
        (factor, bias), (factor2, bias2) = model.logit_scale(*d.split("->")), again.logit_scale(*d.split("->"))
        assert torch.equal(factor, factor2) and (bias is None) == (bias2 is None)
    assert (tmp_path / "a" / "README.md").read_text().count(mark) == 1
    from safetensors.numpy import load_file

    assert load_file(tmp_path / "a" / "trained_on.safetensors")["id"].tolist() == [5, 9]
    save(mmtune.load(tmp_path / "a"), tmp_path / "b", trained_on={"id": np.array([7, 9]), "text": np.array([3])})  # tuned on
    seen = load_file(tmp_path / "b" / "trained_on.safetensors")
    assert seen["id"].tolist() == [5, 7, 9] and seen["text"].tolist() == [3]


EDITS = {
    "weights": lambda d: _flip(d / "weights.safetensors"),
    "preprocessing": lambda d: _replace(d / "parts/0/processor_config.json", '"shortest_edge": 32', '"shortest_edge": 40'),
    "tokenizer": lambda d: _replace(d / "parts/0/tokenizer.json", '"<|startoftext|>"', '"<|startoftext!>"'),
    "layout": lambda d: (
        _replace(d / "mmtune.json", '"normalised"', '"normalised"')
        or _replace(d / "mmtune.json", '"settings": {}', '"settings": {"x": 1}')
    ),
}


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-100] ^= 0x10
    path.write_bytes(data)


def _replace(path, old, new):
    source = path.read_text()
    if old != new:
        assert old in source
    path.write_text(source.replace(old, new))


@pytest.mark.parametrize("edit", list(EDITS))
def test_an_edited_artifact_is_refused(made, tmp_path, edit):
    save(mmtune.load(made["clip"]), tmp_path / "a")
    EDITS[edit](tmp_path / "a")
    with pytest.raises(ModelError):
        mmtune.load(tmp_path / "a")


@pytest.mark.parametrize(
    "gone, message",
    [
        ("weights.safetensors", "weights are missing"),
        ("parts/0", "preprocessing is missing"),
        ("mmtune.json", "not an artifact"),
    ],
)
def test_missing_pieces_are_named(made, tmp_path, gone, message):
    save(mmtune.load(made["clip"]), tmp_path / "a")
    path = tmp_path / "a" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ModelError, match=message):
        mmtune.load(str(tmp_path / "a"))


def test_the_fingerprint_is_about_the_space_not_about_the_place(made, tmp_path):
    model = mmtune.load(made["clip"])
    moved = shutil.copytree(made["clip"].removeprefix("hf:"), tmp_path / "elsewhere")
    assert mmtune.load(f"hf:{moved}").fingerprint == model.fingerprint
    config = json.loads((moved / "processor_config.json").read_text())
    config["image_processor"]["image_mean"] = [0.5, 0.5, 0.5]
    (moved / "processor_config.json").write_text(json.dumps(config))
    assert mmtune.load(f"hf:{moved}").fingerprint != model.fingerprint  # same weights, other preprocessing: another space


def test_encode_says_what_it_cannot_read(made):
    model = mmtune.load(made["clip"])
    with pytest.raises(ModelError, match=r"encode: image\[1\]: /no/such.png: No such file"):
        model.encode(image=[np.zeros((8, 8, 3), np.uint8), "/no/such.png"])
    with pytest.raises(ModelError, match="this model has no audio tower; it has image, text"):
        model.encode(audio=["x.wav"])
    with pytest.raises(ModelError, match=r"encode: no values given"):
        model.encode()
    assert model.encode(text=[]).shape == (0, 24) and model.encode(text="one").shape == (24,)
    assert set(model.encode(text="one", image=np.zeros((8, 8, 3), np.uint8))) == {"text", "image"}


def test_embed_resumes_by_shard_and_refuses_another_model(tmp_path):
    import pyarrow.parquet as pq

    from mmtune.data.pack.pack import pack

    source = corpora.source(tmp_path / "source", 30)
    pack(source, tmp_path / "data", shard_size="20KB")
    data = mmtune.open_data(str(tmp_path / "data"))
    assert len(data.shards) > 3
    model = mmtune.load("tiny:all")
    meta = mmtune.embed(model, data, tmp_path / "out", quiet=True)
    parts = sorted((tmp_path / "out" / "audio").glob("part-*.parquet"))
    assert len(parts) == len(data.shards) and meta.counts["audio"].rows == 30 and meta.dim == 64
    tables = [pq.read_table(p) for p in parts]
    ids = [i for t in tables for i in t["id"].to_pylist()]
    vectors = np.concatenate([np.stack(t["vector"].to_numpy()) for t in tables])
    assert ids == data.ids and tables[0].schema.metadata[b"fingerprint"].decode() == model.fingerprint
    memory = mmtune.embedding.embed_rows.embed_data(model, data)["audio"]
    np.testing.assert_allclose(vectors, memory.vectors, atol=2e-6)
    np.testing.assert_allclose(vectors[4], model.encode(audio=str(source.parent / "4.flac")), atol=2e-6)

    before = {p: p.stat().st_mtime_ns for p in parts}
    parts[1].unlink()
    (tmp_path / "out" / "meta.json").unlink()  # as if killed in the middle
    assert mmtune.embed(model, data, tmp_path / "out", quiet=True) == meta
    assert [p for p in parts if p.stat().st_mtime_ns != before[p]] == [parts[1]]
    np.testing.assert_array_equal(
        np.stack(pq.read_table(parts[1])["vector"].to_numpy()), np.stack(tables[1]["vector"].to_numpy())
    )
    with pytest.raises(DataError, match="another model"):
        mmtune.embed(mmtune.load("tiny:all@1"), data, tmp_path / "out", quiet=True)


def test_trained_rows_keep_how_many_rows_have_a_modality():
    """The same rows trained on twice do not look like repeated content, and an artifact without counts stays strict."""
    first = with_row_counts({"id": np.array([1, 2, 3]), "a": np.array([7, 8, 0]), "b": np.array([5, 5, 5])})
    assert {k: v.tolist() for k, v in union([first, first]).items()} == {
        "id": [1, 2, 3],
        "a": [7, 8],
        "a:rows": [2],
        "b": [5],
        "b:rows": [3],
    }
    assert "a:rows" not in union([first, {"id": np.array([9]), "a": np.array([6])}])
