"""Prompt templates: what is encoded, averaged, drawn, and refused."""

import pickle
import random

import numpy as np
import pytest
import torch

from mmtune.errors import RecipeError
from mmtune.model.artifact import load
from mmtune.model.prompts import Prompted, with_prompt
from mmtune.recipe.prompts_block import parse_prompts


@pytest.fixture(scope="module")
def model():
    return load("tiny:clip")


def vectors(model, preprocess, values):
    with torch.inference_mode():
        return model.encode_inputs("text", preprocess.collate([preprocess(v) for v in values])).numpy()


def test_a_template_stands_around_the_value(model):
    prompts = parse_prompts({"text": {"query": "find: {} {please}"}})
    wrapped = with_prompt(model.towers["text"].preprocess, prompts, "text", "query")
    want = model.encode(text=["find: red shoe {please}", "find: bag {please}"])
    assert np.allclose(vectors(model, wrapped, ["red shoe", "bag"]), want, atol=1e-6)


def test_an_ensemble_is_the_mean_of_unit_vectors(model):
    templates = ["a photo of {}", "{}, close", "my {}"]
    wrapped = with_prompt(
        model.towers["text"].preprocess, parse_prompts({"text": {"zero_shot": templates}}), "text", "zero_shot"
    )
    for_each = [model.encode(text=[t.format(v) for t in templates]).mean(0) for v in ("shoe", "a long bag")]
    want = np.stack([v / np.linalg.norm(v) for v in for_each])
    assert np.allclose(vectors(model, pickle.loads(pickle.dumps(wrapped)), ["shoe", "a long bag"]), want, atol=1e-6)


def test_training_draws_one_template_a_row(model):
    wrapped = Prompted(model.towers["text"].preprocess, ["one {}", "two words {}"])
    assert not wrapped.is_deterministic("x") and Prompted(wrapped.inner, ["one {}"]).is_deterministic("x")
    drawn = [wrapped("shoe", random.Random(s)) for s in range(20)]
    assert {next(iter(d.values())).shape[0] for d in drawn} == {2, 3}
    assert "segments" not in wrapped.collate(drawn)


def test_without_a_template_nothing_changes(model):
    preprocess = model.towers["text"].preprocess
    prompts = parse_prompts({"text": {"query": "q {}"}})
    assert with_prompt(preprocess, prompts, "text") is preprocess and with_prompt(preprocess, {}, "text") is preprocess
    assert isinstance(with_prompt(preprocess, parse_prompts({"text": "d {}"}), "text"), Prompted)


@pytest.mark.parametrize(
    "config,says",
    [
        ({"text": {"query": "no place"}}, "prompts.text.query: 'no place' must contain {} exactly once"),
        ({"text": {"query": ["{} {}"]}}, "prompts.text.query: '{} {}' must contain {} exactly once"),
        ({"text": {"query": 3}}, "prompts.text.query: must be a template, or a list"),
        ({"image": "a {}"}, "prompts.image: prompts are templates for texts"),
        ({"txt": "a {}"}, "no modality called 'txt'"),
    ],
)
def test_mistakes_name_their_key(config, says):
    with pytest.raises(RecipeError) as e:
        parse_prompts(config)
    assert says in str(e.value)


def test_an_unknown_role_is_refused(model):
    with pytest.raises(RecipeError, match="role 'qeury': this model has no such prompt for text; it has query"):
        with_prompt(model.towers["text"].preprocess, parse_prompts({"text": {"query": "q {}"}}), "text", "qeury")
