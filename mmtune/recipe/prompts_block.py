"""`prompts:` and `window_pooling:` of a recipe.

prompts:
  text:                                  a modality whose values are strings
    default: "{}"                        documents: an index, the candidates of evaluation and mining
    query: "find the product: {}"        queries: `encode(..., role="query")`
    zero_shot: ["a photo of {}", "a close-up of {}"]      class names; a list is an ensemble
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, TypeAdapter

from mmtune import modalities
from mmtune.recipe.block import check, invalid

DEFAULT, QUERY, ZERO_SHOT = "default", "query", "zero_shot"


def _modality(name: str) -> str:
    if name not in modalities.names():
        language = [m for m in modalities.names() if modalities.get(m).language]
        raise invalid(f"no modality called {name!r}; prompts are for {', '.join(language)}")
    if not modalities.get(name).language:
        raise invalid(f"prompts go around texts; a value of {name} is none")
    return name


def _roles(value: object) -> object:
    return value if isinstance(value, Mapping) else {DEFAULT: value}


def _templates(value: object) -> object:
    templates = [value] if isinstance(value, str) else value
    if not isinstance(templates, list | tuple) or not templates or not all(isinstance(t, str) for t in templates):
        raise invalid(f'a template, or a list of them, each in quotes (e.g. "find {{}}"); got {templates!r}')
    for template in templates:
        if template.count("{}") != 1:
            raise invalid(f"{template!r} must hold {{}} once, where the value goes")
    return list(templates)


Prompts = dict[str, dict[str, list[str]]]
"""modality -> role -> templates, each with one {}."""

_Templates = Annotated[list[str], BeforeValidator(_templates, json_schema_input_type=str | list[str])]
_Roles = Annotated[
    dict[str, _Templates], BeforeValidator(_roles, json_schema_input_type=str | list[str] | dict[str, _Templates])
]
PromptsBlock = dict[Annotated[str, AfterValidator(_modality)], _Roles]
"""`prompts:` of a recipe, validated to `Prompts`: a template or a list of them stands for the role `default`."""

WindowPooling = dict[str, Literal["mean", "max"]]
"""`window_pooling:` of a recipe: modality -> how the vectors of a long signal's windows become one."""

_ADAPTER: TypeAdapter[Prompts] = TypeAdapter(PromptsBlock)


def parse_prompts(config: object) -> Prompts:
    """A recipe's `prompts`, validated. Raises RecipeError that names the key."""
    return check(_ADAPTER, config, "prompts")
