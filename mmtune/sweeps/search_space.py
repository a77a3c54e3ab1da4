"""Which values a sweep tries: KEY=[LOW..HIGH], KEY=[LOW..HIGH log], KEY={A,B,...} for a dotted recipe key.

A range of two integers is a range of integers. Values of braces are YAML: tune={full, {how: lora, rank: 8}}.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

from mmtune.errors import RecipeError

if TYPE_CHECKING:
    from optuna.trial import Trial

RANGE = re.compile(r"\[\s*(\S+?)\s*\.\.\s*(\S+?)(\s+log)?\s*\]")


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included. log: uniform in the logarithm; whole: integers only."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: "Trial", key: str) -> object:
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def __str__(self) -> str:
        return f"[{self.low:g}..{self.high:g}{' log' if self.log else ''}]"


@dataclass(frozen=True)
class Choices:
    """One of several values, each stored as JSON."""

    values: tuple[str, ...]

    def suggest(self, trial: "Trial", key: str) -> object:
        return json.loads(trial.suggest_categorical(key, self.values))

    def __str__(self) -> str:
        return f"{{{', '.join(self.values)}}}"


def parse_space(items: Sequence[str]) -> tuple[dict[str, Range | Choices], list[str]]:
    """Return {recipe key: the values to try} and the items that set a key to one value, which are plain overrides.

    Raises RecipeError for an item that is not KEY=VALUE, and for a range that is empty or no range of numbers.
    """
    space: dict[str, Range | Choices] = {}
    overrides = []
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise RecipeError(f"{item!r} is not KEY=VALUES; write e.g. train.lr=[1e-5..1e-3 log], train.batch_size={{64,128}}")
        values = _values(key, text.strip())
        if values is None:
            overrides.append(item)
        else:
            space[key] = values
    return space, overrides


def as_space(values: Mapping[str, object]) -> dict[str, Range | Choices]:
    """The search space of `mmtune.sweep`: {key: list of choices, or "[LOW..HIGH log]"}."""
    space: dict[str, Range | Choices] = {}
    for key, value in values.items():
        made = _choices(key, value) if isinstance(value, list | tuple) else _values(key, str(value))
        if made is None:
            raise RecipeError(f"{key}: {value!r} is neither a list of choices nor a range such as '[1e-5..1e-3 log]'")
        space[key] = made
    return space


def _values(key: str, text: str) -> Range | Choices | None:
    if (found := RANGE.fullmatch(text)) is not None:
        return _range(key, found[1], found[2], bool(found[3]))
    if not (text.startswith("{") and text.endswith("}")):
        return None
    try:
        whole = yaml.safe_load(text)
        if isinstance(whole, dict) and any(v is not None for v in whole.values()):
            return None  # a mapping, such as tune={how: lora}: one value
    except yaml.YAMLError:
        pass  # choices that are mappings
    try:
        return _choices(key, yaml.safe_load(f"[{text[1:-1]}]"))
    except yaml.YAMLError as e:
        raise RecipeError(f"{key}: {text} is not {{A, B, ...}}: {' '.join(str(e).split())}") from None


def _range(key: str, low: str, high: str, log: bool) -> Range:
    try:
        first, last = float(low), float(high)
    except ValueError:
        raise RecipeError(f"{key}: [{low}..{high}] is not a range of numbers") from None
    if not first < last:
        raise RecipeError(f"{key}: [{low}..{high}] is empty; write the smaller number first")
    if log and first <= 0:
        raise RecipeError(f"{key}: [{low}..{high} log] has to start above 0")
    whole = all(re.fullmatch(r"-?\d+", n) for n in (low, high))
    return Range(first, last, log, whole)


def _choices(key: str, values: Sequence[object]) -> Choices:
    texts = tuple(json.dumps(_number(v)) for v in values)
    if len(set(texts)) < 2 or len(set(texts)) < len(texts):
        raise RecipeError(f"{key}: a choice needs two different values or more")
    return Choices(texts)


def _number(value: object) -> object:
    """YAML reads 1e-4 as a string; recipes take it as a number."""
    try:
        return float(value) if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+e[-+]?\d+", value) else value
    except ValueError:
        return value


def with_values(document: object, values: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of a recipe's document in which dotted keys have other values. A number in a key is an index of a list.

    Raises RecipeError if a key leads through a value that is no mapping or list.
    """
    copied: dict[str, object] = json.loads(json.dumps(document))
    for key, value in values.items():
        *path, last = key.split(".")
        place: object = copied
        for part in path:
            place = _entered(place, part, key)
        if isinstance(place, list) and last.isdigit() and int(last) < len(place):
            place[int(last)] = value
        elif isinstance(place, dict):
            place[last] = value
        else:
            raise RecipeError(f"{key}: the recipe has no place for {last!r} there")
    return copied


def _entered(place: object, part: str, key: str) -> object:
    if isinstance(place, list) and part.isdigit() and int(part) < len(place):
        return place[int(part)]
    if isinstance(place, dict):
        if not isinstance(place.get(part), dict | list):
            place[part] = {}
        return place[part]
    raise RecipeError(f"{key}: the recipe has no place for {part!r} there")
