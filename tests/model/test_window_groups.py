"""Long signals run through the tower in bounded groups of windows, with the vectors of all windows at once."""

import numpy as np
import pytest
import torch

import mmtune
from mmtune.model import window_groups
from tests.support import checkpoints


@pytest.fixture(scope="module", params=["tiny", "clap", "clap_fused"])
def model(request, tmp_path_factory):
    if request.param == "tiny":
        return mmtune.load("tiny:clap", device="cpu")
    directory = tmp_path_factory.mktemp("model") / request.param
    return mmtune.load(f"hf:{checkpoints.clap(directory, fused=request.param == 'clap_fused')}", device="cpu")


def sounds() -> list[tuple[np.ndarray, int]]:
    rng = np.random.default_rng(0)
    return [(rng.standard_normal(n).astype(np.float32), 8000) for n in (3000, 150_000, 20_000, 8000, 700_000, 90_000)]


def test_vectors_are_those_of_all_windows_at_once(model, monkeypatch):
    whole = sounds()
    monkeypatch.setattr(window_groups, "MAX_BATCH_WINDOWS", 10**9)
    monkeypatch.setattr(window_groups, "MAX_FORWARD_WINDOWS", 10**9)
    want = model.encode(audio=whole)
    monkeypatch.undo()
    tower, seen = model.towers["audio"], []
    encode = tower.encode

    def counted(inputs):
        seen.append(len(next(iter(inputs.values()))))
        return encode(inputs)

    monkeypatch.setattr(tower, "encode", counted)
    for batch_size in (1, 4, 64):
        seen.clear()
        np.testing.assert_allclose(model.encode(audio=whole, batch_size=batch_size), want, atol=1e-6)
        assert max(seen) <= 64 and sum(seen) > 100
    assert len(model.encode(audio=whole[1])) == want.shape[1]


def test_collated_windows_are_bounded(model):
    preprocess = model.towers["audio"].preprocess
    signals = [lambda s=s: mmtune.modalities.get("audio").coerce(s) for s in sounds() * 3]
    groups = list(window_groups.preprocess_in_groups(signals, preprocess, 64))
    counts = [sum(map(preprocess.windows, group)) for group in groups]
    assert sum(map(len, groups)) == len(signals)
    assert len(groups) > 1 and max(counts) < window_groups.MAX_BATCH_WINDOWS + 128


def test_with_gradient_nothing_is_split():
    calls = []

    def encode(inputs):
        calls.append(len(inputs["x"]))
        return inputs["x"] * 2

    inputs = {"x": torch.arange(200.0)}
    window_groups.encode_in_groups(encode, inputs, 2)
    with torch.no_grad():
        out = window_groups.encode_in_groups(encode, inputs, 2)
        window_groups.encode_in_groups(encode, inputs, 300)
    assert calls == [200, 64, 64, 64, 8, 200] and torch.equal(out, inputs["x"] * 2)
