"""Templates around what is encoded: instructions for queries and documents, ensembles for zero-shot class names.

    prompts:
      NAME:                                  a modality whose values are words
        default: "{}"                        what is searched among: an index, the candidates of an evaluation, of mining
        query: "find the product: {}"        what asks: `encode(..., role="query")`, the queries of an evaluation, of mining
        zero_shot: ["a photo of {}", "a close-up of {}"]      class names (`report`), and any other role by its name

A list is an ensemble: the vectors of all templates are averaged and normalised again (CLIP, arXiv 2103.00020). Training sees
what retrieval will: each row, anew each epoch, gets one template drawn from `default` or `query`, half of the rows each where
a query has its own. A model keeps its prompts in `settings`, so that they travel with the artifact and are part of its
fingerprint: other words around a query make another space.
"""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmtune.contracts import Preprocess
from mmtune.errors import RecipeError
from mmtune.recipe.prompts_block import DEFAULT, QUERY, Prompts

PLAIN = ["{}"]


def prompted(preprocess: Preprocess, prompts: Prompts, name: str, role: str | None = None) -> Preprocess:
    """`preprocess` with the templates of that modality and role around it.

    Anything can ask: role "query" is `default` where a model has no words for it, and `default` is the bare value. Raises
    RecipeError for another role that the model does not have.
    """
    roles = prompts.get(name, {})
    if role not in (None, DEFAULT, QUERY) and role not in roles:
        raise RecipeError(f"role {role!r}: this model has no such prompt for {name}; it has {', '.join(roles) or 'none'}")
    templates = _templates(roles, role or DEFAULT)
    return preprocess if templates == PLAIN else Prompted(preprocess, templates)


def _templates(roles: Mapping[str, list[str]], role: str) -> list[str]:
    return roles.get(role) or roles.get(DEFAULT) or PLAIN


def asks_otherwise(prompts: Prompts, name: str) -> bool:
    """Whether a value of that modality has another vector when it asks than when it is found."""
    roles = prompts.get(name, {})
    return _templates(roles, QUERY) != _templates(roles, DEFAULT)


def for_training(preprocess: Preprocess, prompts: Prompts, name: str) -> Preprocess:
    """`preprocess` that draws from the roles of retrieval: `default`, and `query` where it has words of its own."""
    roles = prompts.get(name, {})
    sets = [_templates(roles, r) for r in ((DEFAULT, QUERY) if asks_otherwise(prompts, name) else (DEFAULT,))]
    # As often each, however many templates they are: a draw from one list in which each set is repeated to the same length.
    most = math.lcm(*(len(s) for s in sets))
    templates = [t for s in sets for t in s * (most // len(s))]
    return preprocess if templates == PLAIN else Prompted(preprocess, templates)


class Prompted:
    """A Preprocess of strings that puts each of several templates around them; the model averages (`segments`)."""

    def __init__(self, inner: Preprocess, templates: Sequence[str]) -> None:
        self.inner, self.templates = inner, list(templates)

    def is_deterministic(self, signal: Any) -> bool:
        """Whether training sees the same numbers every time."""
        return len(self.templates) == 1

    def __call__(self, signal: str, rng: random.Random | None = None) -> dict[str, Tensor]:
        """Tensors of every template, or of one drawn by `rng`; keys are "number/name"."""
        chosen = self.templates if rng is None else [rng.choice(self.templates)]
        made = [self.inner(t.replace("{}", signal), rng) for t in chosen]
        return {f"{i}/{k}": v for i, part in enumerate(made) for k, v in part.items()}

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """One batch of all templates of all items; "segments" says whose each is."""
        parts: list[dict[str, Tensor]] = []
        segments: list[int] = []
        for number, item in enumerate(items):
            for i in sorted({int(k.split("/", 1)[0]) for k in item}):
                parts.append({k.split("/", 1)[1]: v for k, v in item.items() if k.startswith(f"{i}/")})
                segments.append(number)
        inputs = self.inner.collate(parts)
        return inputs | {"segments": torch.tensor(segments)} if len(parts) > len(items) else inputs
