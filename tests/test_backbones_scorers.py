"""Cross-encoders and matchers, from small saved models, against their own libraries."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmtune.backbones.scorers import CrossEncoder, Matcher
from mmtune.errors import DataError, ModelError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "red", "blue", "round", "shoe", "bag", "of", "on"]
SIZES = dict(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
PAIRS = [("a red shoe", "shoe"), ("blue bag on a red shoe", "round bag of blue"), ("red", "blue")]


def tokenizer(folder):
    from transformers import BertTokenizerFast

    made = BertTokenizerFast(vocab={w: i for i, w in enumerate(WORDS)})
    made.save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("reader")
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(num_labels=1, **SIZES)).save_pretrained(folder)
    tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def looker(tmp_path_factory):
    from transformers import BlipConfig, BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

    folder = tmp_path_factory.mktemp("looker")
    torch.manual_seed(0)
    sight = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
    words = dict(SIZES, encoder_hidden_size=16, bos_token_id=5, sep_token_id=3, max_position_embeddings=32)
    config = BlipConfig(text_config=words, vision_config=sight, projection_dim=8, image_text_hidden_size=8)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer(folder)).save_pretrained(folder)
    return str(folder)


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
    with pytest.raises(ModelError, match="no sequence classifier there"):
        CrossEncoder(str(tmp_path))
