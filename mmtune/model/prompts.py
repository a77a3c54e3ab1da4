"""Prompts: templates around texts, e.g. instructions for queries and documents, ensembles for zero-shot class names.

    prompts:
      NAME:                                  a language modality
        default: "{}"                        documents: what an index holds, the candidates of an evaluation, of mining
        query: "find the product: {}"        queries: `encode(..., role="query")`, of a search, an evaluation, of mining
        zero_shot: ["a photo of {}", "a close-up of {}"]      class names (`report`), and any other role by its name

A list is an ensemble: the vectors of all its templates are averaged and normalised again (CLIP, arXiv 2103.00020). Training sees
what retrieval will see: each row, anew in each epoch, gets one template drawn from `default` or `query`, half of the rows each
where there is a query prompt. A model keeps its prompts in `settings`, so that they travel with the artifact and are part of its
fingerprint: another prompt makes another embedding space.
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
    """`preprocess` with the templates of that modality and role around its texts.

    Every model accepts the roles "default" and "query": without a prompt of its own, "query" is "default", and "default" is the
    plain text. Raises RecipeError for another role that the model does not have.
    """
    roles = prompts.get(name, {})
    if role not in (None, DEFAULT, QUERY) and role not in roles:
        raise RecipeError(f"role {role!r}: this model has no such prompt for {name}; it has {', '.join(roles) or 'none'}")
    templates = _templates(roles, role or DEFAULT)
    return preprocess if templates == PLAIN else Prompted(preprocess, templates)


def _templates(roles: Mapping[str, list[str]], role: str) -> list[str]:
    return roles.get(role) or roles.get(DEFAULT) or PLAIN


def has_query_prompt(prompts: Prompts, name: str) -> bool:
    """Whether a text of that modality has another vector as a query than as a candidate."""
    roles = prompts.get(name, {})
    return _templates(roles, QUERY) != _templates(roles, DEFAULT)


def with_training_prompts(preprocess: Preprocess, prompts: Prompts, name: str) -> Preprocess:
    """`preprocess` that draws a template for each text: from `default`, and as often from `query` where it differs."""
    roles = prompts.get(name, {})
    ensembles = [_templates(roles, r) for r in ((DEFAULT, QUERY) if has_query_prompt(prompts, name) else (DEFAULT,))]
    # One draw from a list in which each ensemble is repeated to the same length: as often each, however long they are.
    length = math.lcm(*(len(e) for e in ensembles))
    templates = [t for e in ensembles for t in e * (length // len(e))]
    return preprocess if templates == PLAIN else Prompted(preprocess, templates)


class Prompted:
    """A Preprocess that puts each of several templates around a text; the model averages their vectors ("segments")."""

    def __init__(self, inner: Preprocess, templates: Sequence[str]) -> None:
        self.inner, self.templates = inner, list(templates)

    def is_deterministic(self, signal: Signal) -> bool:
        """Whether training gets the same numbers every time."""
        return len(self.templates) == 1

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        """Tensors of every template, or of one drawn by `rng`; keys are "number/name"."""
        chosen = self.templates if rng is None else [rng.choice(self.templates)]
        items = [self.inner(t.replace("{}", signal), rng) for t in chosen]
        return {f"{i}/{k}": v for i, item in enumerate(items) for k, v in item.items()}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One batch of all templates of all items; "segments" [W] is the item of each template."""
        windows: list[dict[str, Tensor]] = []
        segments: list[int] = []
        for number, item in enumerate(items):
            for i in sorted({int(k.split("/", 1)[0]) for k in item}):
                windows.append({k.split("/", 1)[1]: v for k, v in item.items() if k.startswith(f"{i}/")})
                segments.append(number)
        inputs = self.inner.collate(windows)
        return inputs | {"segments": torch.tensor(segments)} if len(windows) > len(items) else inputs
