"""A re-ranker of two texts: its pairs are those of its tokenizer, it learns, resumes exactly, and is a scorer by its path."""

import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

import mmtune
from mmtune.backbones.sequence_classifier import load_sequence_classifier
from mmtune.data.pack.pack import pack
from mmtune.errors import ModelError, RecipeError
from mmtune.training.callbacks import Callback
from tests.support import scorer_helpers
from tests.support.data_helpers import write_csv

COLOURS, THINGS, FILLERS = ["red", "green", "blue"], ["shoe", "bag"], ["a round", "on a", "square", "of a"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sequence")


@pytest.fixture(scope="module")
def classifier(root):
    """A small BERT whose weights are large enough that its scores differ."""
    torch.manual_seed(0)
    config = BertConfig(num_labels=1, initializer_range=0.3, **scorer_helpers.SIZES)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(root / "classifier")
    scorer_helpers.tokenizer(root / "classifier")
    return str(root / "classifier")


@pytest.fixture(scope="module")
def data(root):
    """Texts in groups of colour and thing; each group has four wordings."""
    rows = [
        {"id": f"{c}-{t}-{n}", "text": f"{filler} {c} {t}", "group": f"{c} {t}"}
        for c in COLOURS
        for t in THINGS
        for n, filler in enumerate(FILLERS)
    ]
    pack(write_csv(root / "rows.csv", rows), root / "packed")
    return str(root / "packed")


def recipe(root, data, classifier, name, **keys):
    return {
        "model": "tiny:clip",
        "cross_encoder": {"model": classifier, "negatives": 3, "depth": 8, "max_tokens": 8, **keys.pop("cross", {})},
        "data": {"train": data, "val": data, "allow_trained": True},
        "pairs": [["text", "text"]],
        "tune": "frozen",
        "train": {
            "epochs": 2,
            "batch_size": 12,
            "lr": 2e-3,
            "precision": "fp32",
            "warmup": 0,
            "metric": "mrr",
            "checkpoint_every": 1,
        },
        "run": {"dir": str(root / name), "trackers": []},
        **keys,
    }


def train(*args, resume=False, callbacks=(), **keys):
    with pytest.warns(UserWarning, match="too high"):
        return mmtune.train(recipe(*args, **keys), quiet=True, resume=resume, callbacks=callbacks)


@pytest.mark.parametrize("most", [5, 6, 9, 40])
def test_pairs_of_tokens_are_those_of_the_tokenizer_also_truncated(classifier, most):
    """Against the tokenizer's own joining and `truncation=True`, and so against CrossEncoder of sentence-transformers."""
    made = load_sequence_classifier(classifier, most, 0).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    upstream = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    rng = random.Random(most)
    texts = [
        (" ".join(rng.choices(scorer_helpers.WORDS[7:], k=a)), " ".join(rng.choices(scorer_helpers.WORDS[7:], k=b)))
        for a in (1, 2, 3, 7, 12)
        for b in (1, 4, 5, 11)
    ]
    left, right = zip(*texts, strict=True)
    inputs = tokenizer(list(left), list(right), padding=True, truncation=True, max_length=most, return_tensors="pt")
    with torch.inference_mode():
        want = upstream(**inputs).logits[:, 0]
        got = made([(made.tokens_of(a), made.tokens_of(b)) for a, b in texts])
    assert torch.allclose(got, want, atol=1e-5) and want.std() > 1e-2


def test_it_learns_and_is_a_checkpoint_of_transformers(root, data, classifier):
    result = train(root, data, classifier, "run", train=recipe(root, data, classifier, "x")["train"] | {"epochs": 12})
    scores = result.metrics["reranked_directions"]["text->text"]
    assert scores["reranked"]["mrr"] > scores["first_stage"]["mrr"] + 0.05
    scorer = mmtune.load_cross_encoder(result.artifact)
    assert scorer.fingerprint == result.fingerprint
    pairs = [("a round red shoe", "square red shoe"), ("a round red shoe", "square green bag"), ("blue bag", "blue bag " * 9)]
    tokenizer = AutoTokenizer.from_pretrained(result.artifact)
    upstream = AutoModelForSequenceClassification.from_pretrained(result.artifact).eval()
    left, right = zip(*pairs, strict=True)
    with torch.inference_mode():
        want = upstream(**tokenizer(list(left), list(right), padding=True, truncation=True, return_tensors="pt")).logits[:, 0]
    assert np.allclose(scorer.score(pairs), want, atol=1e-5), (scorer.score(pairs), want)
    assert tokenizer.model_max_length == 16  # twice max_tokens, as in training
    from mmtune.backbones.scorers import load_scorer

    by_path, fingerprint = load_scorer(str(root / "run"), {}, "rerank")  # a teacher, a verifier, `index search --rerank`
    assert fingerprint == result.fingerprint and np.allclose(by_path.score(pairs), want, atol=1e-5)


@pytest.mark.slow
def test_scores_equal_those_of_sentence_transformers(root, data, classifier):
    from sentence_transformers import CrossEncoder

    result = train(root, data, classifier, "parity")
    pairs = [("a round red shoe", "square red shoe"), ("on a blue bag", "of a green bag"), ("red " * 20, "green shoe " * 20)]
    want = CrossEncoder(result.artifact, device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    assert np.allclose(mmtune.load_cross_encoder(result.artifact).score(pairs), want, atol=1e-5)


class StopAfter(Callback):
    def on_step(self, context, metrics):
        if context.step == 3:
            raise KeyboardInterrupt


def test_a_killed_run_resumes_to_the_same_weights(root, data, classifier):
    whole = train(root, data, classifier, "whole")
    with pytest.raises(KeyboardInterrupt):
        train(root, data, classifier, "killed", callbacks=[StopAfter()])
    assert train(root, data, classifier, "killed", resume=True).fingerprint == whole.fingerprint


def test_a_plain_encoder_gets_a_head_by_seed(root):
    torch.manual_seed(0)
    BertModel(BertConfig(**scorer_helpers.SIZES)).save_pretrained(root / "plain")
    scorer_helpers.tokenizer(root / "plain")
    one, same, other = (load_sequence_classifier(f"hf:{root / 'plain'}", 20, seed).module for seed in (1, 1, 2))
    assert torch.equal(one.classifier.weight, same.classifier.weight)
    assert not torch.equal(one.classifier.weight, other.classifier.weight) and one.classifier.weight.shape == (1, 16)


def test_what_cannot_be_trained_is_one_line(root, data, classifier):
    cases = [
        ({"cross": {"layers": 3}}, r"cross_encoder: layers is of the joint layers"),
        ({"tune": "full"}, r"tune: with cross_encoder.model the towers only choose negatives"),
        ({"train": {"shard": True}}, r"cross_encoder: does not work with train.shard"),
    ]
    for keys, message in cases:
        with pytest.raises(RecipeError, match=message):
            mmtune.train(recipe(root, data, classifier, "bad", **keys), quiet=True)
    with pytest.raises(ModelError, match="none: cannot load a configuration"):
        load_sequence_classifier(str(root / "none"), 20, 0)
    config = BertConfig(num_labels=3, **scorer_helpers.SIZES)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(root / "three")
    scorer_helpers.tokenizer(root / "three")
    with pytest.raises(ModelError, match="this classifier has 3 outputs; a re-ranker has one"):
        load_sequence_classifier(str(root / "three"), 20, 0)
