"""BEATs: vectors equal speechbrain's own model for each sound alone, whatever shares its batch, and survive in an artifact."""

import sys

import numpy as np
import pytest
import torch

import mmtune
from mmtune.backbones.beats import WINDOW_SECONDS
from mmtune.errors import MissingExtra, ModelError
from mmtune.modalities.sound import Sound
from tests.backbones.test_hf_single import survives_saving, unit
from tests.support.single_checkpoints import beats_file

SAMPLES = (16000, 4000, 12345, 4000, 2800)


def sounds() -> list[Sound]:
    noise = np.random.default_rng(1)
    return [Sound(noise.standard_normal(n).astype(np.float32) * 0.1, 16000) for n in SAMPLES]


def upstream(path) -> torch.Tensor:
    """Mean of the patches of speechbrain's BEATs, which reads the file itself, for each sound alone."""
    from speechbrain.lobes.models.beats import BEATs

    model = BEATs(str(path))
    return torch.stack([model(torch.from_numpy(s.samples)[None], torch.ones(1))[0][0].mean(0) for s in sounds()])


@pytest.mark.parametrize(
    "settings",
    [{}, {"embed_dim": 32, "deep_norm": False, "layer_norm_first": True}, {"finetuned_model": True, "predictor_class": 5}],
    ids=["pretrained", "norm-first", "fine-tuned"],
)
def test_vectors_equal_speechbrain_for_each_sound_alone(tmp_path, settings):
    path = beats_file(tmp_path / "m", **settings)
    want = unit(upstream(path))
    model = mmtune.load(f"beats:{path}")
    assert model.dim == 32
    np.testing.assert_allclose(model.encode(audio=sounds()), want, atol=1e-5)
    np.testing.assert_allclose(np.stack([model.encode(audio=s) for s in sounds()]), want, atol=1e-5)
    assert np.abs(mmtune.load(f"beats:{path}?pooling=max").encode(audio=sounds()) - want).max() > 0.01
    assert np.isfinite(model.encode(audio=Sound(np.ones(3, np.float32), 16000))).all()


def test_names_of_weights_in_published_files(tmp_path):
    """Microsoft's files name the weights of the positional convolution as torch's older weight normalisation did."""
    path = beats_file(tmp_path / "m")
    want = mmtune.load(f"beats:{path}")
    content = torch.load(path, weights_only=True)
    old = {"original0": "weight_g", "original1": "weight_v"}
    for new, name in old.items():
        content["model"][f"encoder.pos_conv.0.{name}"] = content["model"].pop(
            f"encoder.pos_conv.0.parametrizations.weight.{new}"
        )
    torch.save(content, tmp_path / "published.pt")
    published = mmtune.load(f"beats:{tmp_path / 'published.pt'}")
    assert published.fingerprint == want.fingerprint
    np.testing.assert_array_equal(published.encode(audio=sounds()), want.encode(audio=sounds()))


def test_artifact_holds_all_and_long_sounds_are_averaged(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    model = mmtune.load(f"beats:{beats_file(folder / 'beats')}")
    noise = np.random.default_rng(2).standard_normal(2 * WINDOW_SECONDS * 16000).astype(np.float32)
    halves = [Sound(x, 16000) for x in np.split(noise, 2)]
    mean = model.encode(audio=halves).mean(0)
    np.testing.assert_allclose(model.encode(audio=Sound(noise, 16000)), mean / np.linalg.norm(mean), atol=1e-5)
    survives_saving(model, folder, tmp_path / "artifact", audio=sounds())


def test_bad_files_give_one_line(tmp_path):
    path = beats_file(tmp_path / "m")
    content = torch.load(path, weights_only=True)
    with pytest.raises(ModelError, match="beats:no.pt: no such file"):
        mmtune.load("beats:no.pt")
    with pytest.raises(ModelError, match="pooling 'cls': this model has mean, max"):
        mmtune.load(f"beats:{path}?pooling=cls")
    torch.save({"model": content["model"]}, tmp_path / "bare.pt")
    with pytest.raises(ModelError, match='it has no "cfg" and "model"'):
        mmtune.load(f"beats:{tmp_path / 'bare.pt'}")
    torch.save(content | {"model": content["model"] | {"quantize.embedding": torch.zeros(2)}}, tmp_path / "tokenizer.pt")
    with pytest.raises(ModelError, match="1 weights differ, first 'quantize.embedding'"):
        mmtune.load(f"beats:{tmp_path / 'tokenizer.pt'}")
    torch.save(content | {"cfg": content["cfg"] | {"encoder_ffn_embed_dim": 64}}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="not those that its settings describe"):
        mmtune.load(f"beats:{tmp_path / 'other.pt'}")
    (tmp_path / "damaged.pt").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read without running its code, or is damaged"):
        mmtune.load(f"beats:{tmp_path / 'damaged.pt'}")


def test_missing_speechbrain_names_the_extra(tmp_path, monkeypatch):
    path = beats_file(tmp_path / "m")
    monkeypatch.setitem(sys.modules, "speechbrain.lobes.models.beats", None)
    with pytest.raises(MissingExtra, match=r'pip install "mmtune\[beats\]"'):
        mmtune.load(f"beats:{path}")


def test_training_draws_from_no_global_generator(tmp_path):
    model = mmtune.load(f"beats:{beats_file(tmp_path / 'm', encoder_layerdrop=0.9)}")
    tower = model.towers["audio"]
    inputs = tower.preprocess.collate([tower.preprocess(s) for s in sounds()])
    model.train()
    with torch.no_grad():
        first, second = (model.encode_inputs("audio", inputs) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_modules_can_be_searched_for_files_afterwards(tmp_path):
    """speechbrain's redirects to packages that are not installed raised ImportError for whoever looked through sys.modules."""
    mmtune.load(f"beats:{beats_file(tmp_path / 'm')}")
    for name, module in list(sys.modules.items()):
        assert module is None or isinstance(getattr(module, "__file__", None), str | None), name
