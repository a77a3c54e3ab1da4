"""Generate the recipe's JSON Schema and the documentation page of all recipe keys from the pydantic models."""

import json
import re
import types
import typing
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.errors import RecipeError
from mmtune.recipe.augment_block import options_model
from mmtune.recipe.augment_step import AugmentStep
from mmtune.recipe.included_files import INCLUDE, INCLUDE_SCHEMA
from mmtune.recipe.objective_block import TermBlock
from mmtune.recipe.recipe import Recipe
from mmtune.recipe.recipe_file import FORMAT, FORMAT_KEY
from mmtune.runtime.plugins import nearest

_KEY = re.compile(r"^\| `([^`]+)` \|", re.M)
HEAD = """# Recipe keys

All keys of a recipe with their types, defaults and meanings. `mmtune init --schema FILE` writes them as a JSON Schema, with which
an editor can complete and check recipes (in VS Code: write `# yaml-language-server: $schema=FILE` in the first line of the recipe).
On the command line, keys are set by their dotted names: `train.epochs=12`, `objective.0.smoothing=0.1`. A mapping is merged with what the
recipe has there (`augment={image: {flip: true}}`); `augment={}`, `run.callbacks=[]` or `augment=null` empty it, and `mining=null` switches a block
off that may be null.

A file may be composed of others: `include: FILE` or `include: [FILE, FILE]`, with paths relative to it. Later files win over earlier ones, and
its own keys over theirs; lists are replaced. `mmtune recipe show FILE` prints the result. The recipes in `recipes/` are composed of `recipes/parts/`.

This page is generated: `python -m mmtune.recipe.recipe_keys > docs/recipe_keys.md`.
"""


def json_schema() -> JsonObject:
    """Generate the JSON Schema (draft 2020-12) of recipe files.

    A file may have the keys `include` (see `included_files`) and `format`, which are no keys of a recipe. What is required may then stand in the
    included files, so it is required only of files without `include`.
    """
    schema = Recipe.model_json_schema()
    definitions, properties, required = schema["$defs"], schema["properties"], schema.pop("required")
    whole = {}
    for name in required:
        reference = properties[name].get("$ref", "").rsplit("/", 1)[-1]
        if "required" in definitions.get(reference, {}):
            definitions[f"PartOf{reference}"] = {k: v for k, v in definitions[reference].items() if k != "required"}
            whole[name] = properties[name]
            properties[name] = {**properties[name], "$ref": f"#/$defs/PartOf{reference}"}
    number = {
        "description": "format number of the file, which mmtune writes",
        "type": "integer",
        "minimum": 1,
        "maximum": FORMAT,
    }
    properties = {INCLUDE: INCLUDE_SCHEMA, FORMAT_KEY: number, **properties}
    without_include = {"if": {"not": {"required": [INCLUDE]}}, "then": {"required": required, "properties": whole}}
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**head, **schema, "properties": properties, **without_include, "title": "mmtune recipe"}


def blocks_in(annotation: object) -> Iterator[type[BaseModel]]:
    """Yield the recipe blocks that occur in a type such as `str | list[str | TrainingSet]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for inner in typing.get_args(annotation):
        yield from blocks_in(inner)


def recipe_keys_page() -> str:
    """Generate the content of docs/recipe_keys.md."""
    sections = [HEAD, _section("", Recipe)]
    for name, info in Recipe.model_fields.items():
        if name == "augment":
            sections += [part for m in modalities.names() for part in _sections(f"{name}.{m}", options_model(m), False)]
            continue
        blocks = list(blocks_in(info.annotation))
        if name == "objective":
            sections.append(_section("objective: keys of every loss", TermBlock))
        sections += [part for block in dict.fromkeys(blocks) for part in _sections(name, block, len(set(blocks)) > 1)]
    return "\n".join(sections)


def explain_key(path: str) -> str:
    """Return what docs/recipe_keys.md says about a dotted key, or of all keys of a block ("" is the top level).

    Raises RecipeError, with the nearest name, if there is no such key.
    """
    parts = recipe_keys_page().split("\n## ")[1:]
    titled = [(part.partition("\n")[0], part) for part in parts]
    own = [f"## {part}".rstrip() for title, part in titled if title.partition(" (")[0] == (path or "Top level")]
    if own:
        return "\n\n".join(own)
    block, _, key = path.rpartition(".")
    rows = [
        f"{title.replace('Top level', '').strip()}{'.' if block else ''}{key}: {' | '.join(c.strip() for c in cells[1:])}"
        for title, part in titled
        if title.partition(" (")[0] == (block or "Top level")
        for line in part.split("\n")
        if line.startswith(f"| `{key}` |")
        for cells in [re.split(r"(?<!\\)\|", line.strip("| "))]
    ]
    if not rows:
        known = [
            f"{title.partition(' (')[0]}." * (title != "Top level") + k for title, part in titled for k in _KEY.findall(part)
        ]
        raise RecipeError(f"no recipe key {path!r}{nearest(path, dict.fromkeys(known))[:300]}")
    return "\n".join(rows)


def _sections(path: str, block: type[BaseModel], one_of_several: bool) -> Iterator[str]:
    """Yield the section of a block and the sections of the blocks inside it."""
    variant = f" ({_variant(block)})" if one_of_several else " (a step of the list)" if issubclass(block, AugmentStep) else ""
    yield _section(path + variant, block)
    for name, info in block.model_fields.items():
        inner = list(dict.fromkeys(blocks_in(info.annotation)))
        for nested in inner:
            # a list such as augment.MODALITY is short for its steps
            at = path if issubclass(nested, AugmentStep) else f"{path}.{name}"
            yield from _sections(at, nested, len(inner) > 1)


def _variant(block: type[BaseModel]) -> str:
    """The part of a section title that distinguishes variants of a block: its `how`, `loss`, `plan` or `name`, or its first key."""
    for key in ("how", "loss", "plan", "name"):
        if key in block.model_fields:
            default, target = block.model_fields[key].default, "Class" if key == "name" else "function"
            return f"{key}: {default if default is not PydanticUndefined else f'package.module:{target}'}"
    return next(iter(block.model_fields))


def _section(title: str, block: type[BaseModel]) -> str:
    text = " ".join((block.__doc__ or "").split())
    lines = [f"## {title or 'Top level'}", "", text, "", "| key | type | default | meaning |", "|---|---|---|---|"]
    properties = block.model_json_schema()["properties"]
    # the keys that every loss has are listed once, in the section of TermBlock
    hidden = TermBlock.model_fields.keys() - {"loss"} if block is not TermBlock and issubclass(block, TermBlock) else set()
    for name, info in block.model_fields.items():
        if name in hidden and name not in block.__annotations__:
            continue
        meaning = info.description or ""
        lines.append(f"| `{name}` | {_cell(_words(properties[name]))} | {_cell(_default(info))} | {_cell(meaning)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _words(schema: JsonObject) -> str:
    """Describe a JSON Schema type in words, e.g. "number or null"."""
    if "$ref" in schema:
        return "block"
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{v}`" for v in schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_words(s) for s in schema[key]))
    kind = schema.get("type", "any value")
    if kind == "array" and "items" in schema:
        return f"list of {_words(schema['items'])}"
    if kind == "array":
        return "list"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {_words(inner)}" if isinstance(inner, dict) and inner else "mapping"
    return str(kind)


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True) if not info.is_required() else PydanticUndefined
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        short = [getattr(value, key) for key in ("how", "name") if key in type(value).model_fields]
        return f"`{short[0]}`" if short else "see its section"
    if isinstance(value, list) and value and isinstance(value[0], BaseModel):
        return f"`{json.dumps([{'loss': v.loss} for v in value if hasattr(v, 'loss')])}`"
    return f"`{json.dumps(value)}`"


if __name__ == "__main__":
    print(recipe_keys_page(), end="")
