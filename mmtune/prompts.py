"""Templates around what is encoded: instructions for queries and documents, ensembles for zero-shot class names.

    prompts:
      NAME:                                  a modality whose values are words
        default: "{}"                        indexing, evaluation and training where no other role is asked for
        query: "find the product: {}"        `encode(..., role="query")`, and the query side of an evaluation
        zero_shot: ["a photo of {}", "a close-up of {}"]

A list is an ensemble: the vectors of all templates are averaged and normalised again (CLIP, arXiv 2103.00020); in training one
of them is drawn for each row. A model keeps its prompts in `settings`, so that they travel with the artifact and are part of
its fingerprint: other words around a query make another space.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmtune import modalities
from mmtune.contracts import Preprocess
from mmtune.errors import RecipeError

DEFAULT = "default"
Prompts = dict[str, dict[str, list[str]]]
"""modality -> role -> templates, each with one {}."""


def parse_prompts(config: Mapping[str, Any]) -> Prompts:
    """A recipe's `prompts`, checked. Raises RecipeError naming the key."""
    parsed: Prompts = {}
    for name, roles in config.items():
        if not modalities.get(name).inline:
            raise RecipeError(f"prompts.{name}: templates go around words; a value of {name} is none")
        if not isinstance(roles, Mapping):
            roles = {DEFAULT: roles}
        parsed[name] = {}
        for role, templates in roles.items():
            templates = [templates] if isinstance(templates, str) else templates
            key = f"prompts.{name}.{role}"
            if not isinstance(templates, Sequence) or not templates or not all(isinstance(t, str) for t in templates):
                raise RecipeError(f"{key}: a template, or a list of them")
            for template in templates:
                if template.count("{}") != 1:
                    raise RecipeError(f"{key}: {template!r} must hold {{}} once, where the value goes")
            parsed[name][role] = list(templates)
    return parsed


def prompted(preprocess: Preprocess, prompts: Prompts, name: str, role: str | None = None) -> Preprocess:
    """`preprocess` with the templates of that modality and role around it; `default` (or none) where the role has none.

    Raises RecipeError for a role that the model does not have.
    """
    roles = prompts.get(name, {})
    if role not in (None, DEFAULT) and role not in roles:
        raise RecipeError(f"role {role!r}: this model has no such prompt for {name}; it has {', '.join(roles) or 'none'}")
    templates = roles.get(role or DEFAULT, ["{}"])
    return preprocess if templates == ["{}"] else Prompted(preprocess, templates)


class Prompted:
    """A Preprocess of strings that puts each of several templates around them; the model averages (`segments`)."""

    def __init__(self, inner: Preprocess, templates: Sequence[str]) -> None:
        self.inner, self.templates = inner, list(templates)

    def fixed(self, signal: Any) -> bool:
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
