"""Apply prompt templates to texts, e.g. instructions for queries and documents, or template ensembles for zero-shot class
names.

    prompts:
      NAME:                                                   name of a text modality
        default: "{}"                                         documents: items of an index, candidates in evaluation and mining
        query: "find the product: {}"                         queries of a search, in evaluation and mining
        zero_shot: ["a photo of {}", "a close-up of {}"]      class names in zero-shot classification
        MY_ROLE: "..."                                        any other role, used by `encode(..., role="MY_ROLE")`

"{}" stands for the text. A list of templates is an ensemble: the embeddings of all its templates are averaged and L2-normalised
again (CLIP, arXiv 2103.00020).

In training, each row gets one template, drawn at random in each epoch. If there is a `query` prompt, half of the rows get a
template of `query` and half of `default`, so that the model is trained on both kinds of prompts that searches use.

Prompts are part of the model's settings: they are stored in its artifact, and models with different prompts have different
fingerprints.
"""

import math
import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmtune.contracts import Preprocess, Signal
from mmtune.errors import RecipeError
from mmtune.recipe.prompts_block import DEFAULT, QUERY, Prompts

PLAIN = ["{}"]


def with_prompt(preprocess: Preprocess, prompts: Prompts, name: str, role: str | None = None) -> Preprocess:
    """Return a preprocessing that first puts each text into the templates of a modality and role.

    preprocess: the tower's own preprocessing
    prompts: the model's prompts
    name: the modality
    role: None means "default". Every model accepts the roles "default" and "query": without a `query` prompt, "query" uses the
        `default` prompt; without a `default` prompt, the text is used unchanged.

    Raises RecipeError for any other role that the model does not have.
    """
    roles = prompts.get(name, {})
    if role not in (None, DEFAULT, QUERY) and role not in roles:
        raise RecipeError(f"role {role!r}: this model has no such prompt for {name}; it has {', '.join(roles) or 'none'}")
    templates = _templates(roles, role or DEFAULT)
    return preprocess if templates == PLAIN else Prompted(preprocess, templates)


def _templates(roles: Mapping[str, list[str]], role: str) -> list[str]:
    return roles.get(role) or roles.get(DEFAULT) or PLAIN


def has_query_prompt(prompts: Prompts, name: str) -> bool:
    """Whether texts of that modality have different prompts, and so different embeddings, as queries and as candidates."""
    roles = prompts.get(name, {})
    return _templates(roles, QUERY) != _templates(roles, DEFAULT)


def with_training_prompts(preprocess: Preprocess, prompts: Prompts, name: str) -> Preprocess:
    """Return a preprocessing for training, which draws one template for each text.

    It draws from the `default` templates; if the `query` templates differ, it draws from both roles with equal probability.
    """
    roles = prompts.get(name, {})
    ensembles = [_templates(roles, r) for r in ((DEFAULT, QUERY) if has_query_prompt(prompts, name) else (DEFAULT,))]
    # Repeat each ensemble to a common length, so that a template drawn from the joint list is equally likely of either role.
    length = math.lcm(*(len(e) for e in ensembles))
    templates = [t for e in ensembles for t in e * (length // len(e))]
    return preprocess if templates == PLAIN else Prompted(preprocess, templates)


class Prompted:
    """A Preprocess that puts a text into each of several templates. The model averages the embeddings of the templates."""

    def __init__(self, inner: Preprocess, templates: Sequence[str]) -> None:
        self.inner, self.templates = inner, list(templates)

    def is_deterministic(self, signal: Signal) -> bool:
        """Whether preprocessing is deterministic in training (a single template), so that its result can be cached."""
        return len(self.templates) == 1

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        """Preprocess the text in every template, or in one drawn by `rng`.

        The keys of the returned tensors are "number/name": the number of the template, and the tensor's name.
        """
        chosen = self.templates if rng is None else [rng.choice(self.templates)]
        items = [self.inner(t.replace("{}", signal), rng) for t in chosen]
        return {f"{i}/{k}": v for i, item in enumerate(items) for k, v in item.items()}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Collate all templates of all items into one batch; "segments" [W] is the item index of each filled-in template."""
        windows: list[dict[str, Tensor]] = []
        segments: list[int] = []
        for number, item in enumerate(items):
            for i in sorted({int(k.split("/", 1)[0]) for k in item}):
                windows.append({k.split("/", 1)[1]: v for k, v in item.items() if k.startswith(f"{i}/")})
                segments.append(number)
        inputs = self.inner.collate(windows)
        return inputs | {"segments": torch.tensor(segments)} if len(windows) > len(items) else inputs
