"""The base class of every recipe block, and validation with one-line errors that name the key and the nearest known one."""

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, ClassVar, TypeVar, overload

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from mmtune.errors import RecipeError
from mmtune.runtime.plugins import nearest

T = TypeVar("T")

OLD_NAMES: dict[str, str] = {}
"""Present name of a renamed key -> its old spelling."""
IMPLIED = ("loss", "how", "default")
"""Keys that a short form leaves out: `tune: lora` stands for `tune: {how: lora}`."""

UNKNOWN = "unknown_recipe_key"
"""Type of the error for a key that a block does not have; it is reported before any other error."""
OWN = "recipe_value"
"""Type of the errors that carry their whole message."""


def invalid(message: str) -> PydanticCustomError:
    """An error with its own text, to be raised by a validator of a block."""
    return PydanticCustomError(OWN, "{message}", {"message": message})


def _finite(value: object) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]  # TypeError is handled
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise invalid(f"{value!r} is not a number")
    if math.isinf(number):
        raise invalid(f"{value} is not a finite number")
    return number


Number = Annotated[float, BeforeValidator(_finite, json_schema_input_type=float)]
"""A finite number; `true` is none."""


class RecipeBlock(BaseModel):
    """A block of the recipe. A key that it does not have is an error that names the nearest one."""

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=False)
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Old spelling of a key -> the present one. The old one is read, with a warning."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        OLD_NAMES.update({new: old for old, new in cls.renamed_keys.items()})

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        given = dict(value)
        for old, new in cls.renamed_keys.items():
            if old in given:
                if new in given:
                    raise invalid(f"`{old}` is the old name of `{new}`; give one of them")
                warnings.warn(f"recipe: the key `{old}` is called `{new}` now", FutureWarning, stacklevel=2)
                given[new] = given.pop(old)
        if cls.model_config.get("extra") == "forbid":
            for key in given:
                if key not in cls.model_fields:
                    details = {"key": str(key), "message": cls.unknown_key(str(key)), "known": list(cls.model_fields)}
                    raise PydanticCustomError(UNKNOWN, "unknown key {key}", details)
        return given

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """What the error says of a key that this block lacks; empty for the usual text."""
        return ""


@overload
def check(kind: "TypeAdapter[T]", value: object, path: str = "", where: str = "") -> T: ...


@overload
def check(kind: type[T], value: object, path: str = "", where: str = "") -> T: ...


def check(kind: "type[T] | TypeAdapter[T]", value: object, path: str = "", where: str = "") -> T:
    """`value` validated as `kind`. Raises RecipeError: one line with the file (`where`), the key below `path`, and what is
    wrong with it."""
    adapter: TypeAdapter[T] = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as e:
        problem = _most_telling(e.errors(include_url=False))
        line = _line(problem, value, path)
        raise RecipeError(f"{where}: {line}" if where else line) from None


def _most_telling(problems: Sequence[ErrorDetails]) -> ErrorDetails:
    """An unknown key, if there is one; else the first key's error, of the union alternative that matched deepest."""
    for problem in problems:
        if problem["type"] == UNKNOWN:
            return problem
    first = [p for p in problems if p["loc"][:1] == problems[0]["loc"][:1]]
    return max(first, key=lambda p: (len(p["loc"]), p["type"] == OWN))


def dotted(parts: Iterable[str | int], start: str = "") -> str:
    """("objective", 0, "loss") -> "objective[0].loss"."""
    path = start
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _keys(problem: ErrorDetails, document: object) -> list[str | int]:
    """The keys and indices of the document in pydantic's location, which also names the alternatives of unions."""
    keys: list[str | int] = []
    place, parts = document, list(problem["loc"])
    for number, part in enumerate(parts):
        if isinstance(place, Mapping) and part in place:
            place = place[part]
        elif isinstance(place, Mapping) and OLD_NAMES.get(str(part)) in place:
            place = place[OLD_NAMES[str(part)]]
        elif isinstance(place, Sequence) and not isinstance(place, str) and isinstance(part, int) and part < len(place):
            place = place[part]
        elif (problem["type"] == "missing" and number == len(parts) - 1) or (part in IMPLIED and isinstance(place, str)):
            pass  # a key that should be there, or that the short form implies
        else:
            continue
        keys.append(part)
    return keys


def _line(problem: ErrorDetails, document: object, path: str) -> str:
    keys, given, context = _keys(problem, document), problem["input"], problem.get("ctx") or {}
    at, kind = dotted(keys, path), problem["type"]
    if kind == UNKNOWN:
        return _unknown(at, context["key"], context["message"], context["known"])
    if kind == "missing":
        return f"{at}: is missing: give it in the recipe, or as {at}=VALUE after it"
    if kind == OWN:
        return _joined(at, problem["msg"])
    if kind == "value_error":
        return _joined(at, problem["msg"].removeprefix("Value error, "))
    if kind == "union_tag_invalid":
        key = dotted([*keys, context["discriminator"].strip("'")], path)
        return f"{key}: {context['tag']!r}{nearest(context['tag'], _quoted(context['expected_tags']))}"
    if kind == "literal_error" and isinstance(given, str):
        if near := difflib.get_close_matches(given, _quoted(context["expected"]), 1):
            return f"{at}: {given!r}; did you mean {near[0]!r}?"
    shown = "" if isinstance(given, Mapping) else f" (got {given!r})"
    return _joined(at, f"{problem['msg']}{shown}")


def _joined(at: str, text: str) -> str:
    return f"{at}: {text}" if at else text


def _quoted(text: str) -> list[str]:
    return [part for number, part in enumerate(text.split("'")) if number % 2]


def _unknown(at: str, key: str, text: str, known: Sequence[str]) -> str:
    name = f"{at}.{key}" if at else key
    if text:
        return f"{name}: {text}"
    near = difflib.get_close_matches(key, known, 1, 0.5)
    start = name.removesuffix(key)
    return f"unknown key {name}; " + (f"did you mean {start}{near[0]}?" if near else f"known: {', '.join(known)}")
