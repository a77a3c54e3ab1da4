"""The recipe blocks `prompts:` and `window_pooling:`.

`prompts:` sets templates for the texts of a text modality. The role says what a text is used for:

prompts:
  text:                                  # name of a text modality
    default: "{}"                        # candidates: items of an index, and candidates in evaluation and mining
    query: "find the product: {}"        # queries, as in `model.encode(..., role="query")`
    zero_shot: ["a photo of {}", "a close-up of {}"]      # class names; embeddings of several templates are averaged
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
        raise invalid(f"prompts are templates for texts, but {name} is not a text modality")
    return name


def _roles(value: object) -> object:
    return value if isinstance(value, Mapping) else {DEFAULT: value}


def _templates(value: object) -> object:
    templates = [value] if isinstance(value, str) else value
    if not isinstance(templates, list | tuple) or not templates or not all(isinstance(t, str) for t in templates):
        raise invalid(f'must be a template, or a list of them, each in quotes (e.g. "find {{}}"); got {templates!r}')
    for template in templates:
        if template.count("{}") != 1:
            raise invalid(f"{template!r} must contain {{}} exactly once; the text is put in its place")
    return list(templates)


Prompts = dict[str, dict[str, list[str]]]
"""Type of validated prompts: modality -> role -> templates, each of which contains {} once."""

_Templates = Annotated[list[str], BeforeValidator(_templates, json_schema_input_type=str | list[str])]
_Roles = Annotated[
    dict[str, _Templates], BeforeValidator(_roles, json_schema_input_type=str | list[str] | dict[str, _Templates])
]
PromptsBlock = dict[Annotated[str, AfterValidator(_modality)], _Roles]
"""Type of the recipe block `prompts:`, validated to `Prompts`. A template or list without a role gets the role `default`."""

WindowPooling = dict[str, Literal["mean", "max"]]
"""Type of the recipe key `window_pooling:`. Maps a modality to the pooling over the windows into which long signals are split."""

_ADAPTER: TypeAdapter[Prompts] = TypeAdapter(PromptsBlock)


def parse_prompts(config: object) -> Prompts:
    """Validate the recipe block `prompts`. Raises RecipeError, which names the key, if it is invalid."""
    return check(_ADAPTER, config, "prompts")
