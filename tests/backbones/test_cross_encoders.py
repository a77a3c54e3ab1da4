"""Cross-encoders and matchers, from small saved models, against their own libraries."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.backbones.cross_encoders import CrossEncoder, Matcher
from mmtune.errors import DataError, ModelError
from tests.support.scorer_helpers import cross_encoder, matcher

PAIRS = [("a red shoe", "shoe"), ("blue bag on a red shoe", "round bag of blue"), ("red", "blue")]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    return cross_encoder(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def looker(tmp_path_factory):
    return matcher(tmp_path_factory.mktemp("looker"))


def test_cross_encoder_scores_do_not_depend_on_the_batch(reader):
    scores = CrossEncoder(reader).score(PAIRS)
    assert np.allclose(CrossEncoder(reader, batch_size=1).score(PAIRS), scores, atol=1e-5) and len(set(scores)) == 3
    assert CrossEncoder(reader).fingerprint == CrossEncoder(reader, batch_size=1).fingerprint


@pytest.mark.slow
def test_cross_encoder_equals_sentence_transformers(reader):
    peer = pytest.importorskip("sentence_transformers", reason="the peer is not installed")
    want = peer.CrossEncoder(reader, device="cpu").predict(PAIRS, activation_fn=torch.nn.Identity())
    assert np.allclose(CrossEncoder(reader, device="cpu").score(PAIRS), want, atol=1e-5)


def test_matcher_equals_blips_own_head(looker):
    from transformers import AutoProcessor, BlipForImageTextRetrieval

    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)) for _ in range(3)]
    pairs = [(i, t) for i, (t, _) in zip(images, PAIRS, strict=True)]
    scores = Matcher(looker).score(pairs)
    model, processor = BlipForImageTextRetrieval.from_pretrained(looker).eval(), AutoProcessor.from_pretrained(looker)
    for (image, text), got in zip(pairs, scores, strict=True):
        with torch.inference_mode():
            odds = model(**processor(images=image, text=text, return_tensors="pt")).itm_score[0].log_softmax(-1)
        assert got == pytest.approx(float(odds[1] - odds[0]), abs=1e-5)
    assert Matcher(looker).score([(t, i) for i, t in pairs]) == scores


def test_what_a_scorer_cannot_read_is_said(reader, looker, tmp_path):
    with pytest.raises(DataError, match="use the scorer `matcher`"):
        CrossEncoder(reader).score([(Image.new("RGB", (4, 4)), "a")])
    with pytest.raises(DataError, match="use the scorer `cross_encoder`"):
        Matcher(looker).score([("a", "b")])
    with pytest.raises(ModelError, match="cannot load a sequence classifier"):
        CrossEncoder(str(tmp_path))
