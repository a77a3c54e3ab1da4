"""The base class of all recipe blocks, and validation whose errors are one line that names the recipe key."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType
from typing import Annotated, ClassVar, TypeVar, get_args, overload

from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from mmtune.errors import RecipeError
from mmtune.runtime.deprecation import warn_renamed
from mmtune.runtime.plugins import nearest

T = TypeVar("T")

OLD_NAMES: dict[str, str] = {}
"""Current name of a renamed key -> its old name."""
IMPLIED = ("loss", "how", "plan", "default", "name")
"""Keys that a short form omits: `tune: lora` is short for `tune: {how: lora}`."""

UNKNOWN = "unknown_recipe_key"
"""Pydantic error type of an unknown key. If there are several errors, an unknown key is the one that is reported."""
OWN = "recipe_value"
"""Pydantic error type of errors made by `invalid`, whose message is shown unchanged."""


def invalid(message: str) -> PydanticCustomError:
    """Create the error that a validator of a recipe block raises. `message` is shown after the name of the key."""
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
"""A finite number. Booleans are rejected, although Python treats them as integers."""


class RecipeBlock(BaseModel):
    """Base class of recipe blocks. An unknown key is an error that suggests the most similar known key."""

    model_config = ConfigDict(extra="forbid", validate_default=True, validate_assignment=False)
    renamed_keys: ClassVar[Mapping[str, str]] = {}
    """Old name of a key -> its current name. Old names are still accepted, with a FutureWarning."""

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
                warn_renamed(f"recipe: the key `{old}`", f"`{new}`")
                given[new] = given.pop(old)
        given = {k: v for k, v in given.items() if v is not None or not cls._null_is_default(k)}
        if cls.model_config.get("extra") == "forbid":
            for key in given:
                if key not in cls.model_fields:
                    details = {"key": str(key), "message": cls.unknown_key(str(key)), "known": list(cls.model_fields)}
                    raise PydanticCustomError(UNKNOWN, "unknown key {key}", details)
        return given

    @classmethod
    def _null_is_default(cls, key: str) -> bool:
        """Whether null for this key is the same as leaving it out: for a list, mapping or block that has no value null.

        YAML reads a key with nothing under it as null, and `key=null` on the command line clears what the recipe set.
        """
        field = cls.model_fields.get(key)
        if field is None or NoneType in get_args(field.annotation):
            return False
        return isinstance(field.get_default(call_default_factory=True), list | tuple | Mapping | BaseModel)

    @classmethod
    def unknown_key(cls, key: str) -> str:
        """The error message for an unknown key of this block; an empty string means the default message."""
        return ""


@overload
def check(kind: "TypeAdapter[T]", value: object, path: str = "", where: str = "") -> T: ...


@overload
def check(kind: type[T], value: object, path: str = "", where: str = "") -> T: ...


def check(kind: "type[T] | TypeAdapter[T]", value: object, path: str = "", where: str = "") -> T:
    """Validate `value` and return it as an instance of `kind`.

    value: plain data, e.g. parsed YAML
    path: dotted recipe key of `value`, put in front of the keys in error messages
    where: file that `value` comes from, at the start of error messages

    Raises RecipeError, whose message is one line, if `value` is invalid.
    """
    adapter: TypeAdapter[T] = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_python(value)
    except ValidationError as e:
        problem = _most_specific(e.errors(include_url=False))
        line = _line(problem, value, path)
        raise RecipeError(f"{where}: {line}" if where else line) from None


def _most_specific(problems: Sequence[ErrorDetails]) -> ErrorDetails:
    """Choose the error to report: an unknown key if there is one, else an error of the first invalid key.

    If the key's type is a union, every alternative has its errors; the error at the deepest location is chosen.
    """
    for problem in problems:
        if problem["type"] == UNKNOWN:
            return problem
    first = [p for p in problems if p["loc"][:1] == problems[0]["loc"][:1]]
    return max(first, key=lambda p: (len(p["loc"]), p["type"] == OWN))


def dotted(parts: Iterable[str | int], start: str = "") -> str:
    """Join keys and list indices to a dotted path: ("objective", 0, "loss") becomes "objective[0].loss"."""
    path = start
    for part in parts:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path


def _keys(problem: ErrorDetails, document: object) -> list[str | int]:
    """The keys and list indices of the document that lead to the error.

    They are picked from pydantic's location `loc`, which also contains names of union alternatives; these are not in the document.
    """
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
            pass  # a required key that is missing, or a key that the short form omits
        else:
            continue
        keys.append(part)
    return keys


def missing_key(key: str) -> str:
    """Say that a key of a recipe has to be set, and how."""
    return f"{key}: is missing: set it in the recipe, or give {key}=VALUE after the recipe on the command line"


def _line(problem: ErrorDetails, document: object, path: str) -> str:
    keys, given, context = _keys(problem, document), problem["input"], problem.get("ctx") or {}
    at, kind = dotted(keys, path), problem["type"]
    if kind == UNKNOWN:
        return _unknown(at, context["key"], context["message"], context["known"])
    if kind == "missing":
        return missing_key(at)
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
