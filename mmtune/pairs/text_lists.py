"""Read a list of short texts out of the answer of a language model: JSON, or lines with numbers or dashes."""

import json
import re

FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
LINE = re.compile(r"\s*(?:\d{1,2}[.):]|[-*\u2022])\s+(.*\S)")
NUMBER = re.compile(r"(?:item)?\s*#?([0-9]{1,4})\s*:?", re.IGNORECASE)
LONGEST = 400
"""Characters; a longer entry is no caption and no query but prose around them."""


def texts_of(answer: str) -> list[str]:
    """The texts of an answer, without repetitions; [] if the answer is not a list of texts.

    Accepted are a JSON list of strings, a JSON object that contains one, either also within ``` or other text, and lines that begin with
    a number or a dash.
    """
    fenced = FENCE.search(answer)
    for candidate in (answer, fenced[1] if fenced else "", _between(answer, "[", "]"), _between(answer, "{", "}")):
        if (found := _from_json(candidate)) is not None:
            return _clean(found)
    return _clean([match[1] for line in answer.split("\n") if (match := LINE.fullmatch(line))])


def texts_by_number(answer: str, count: int) -> dict[int, list[str]]:
    """The texts of an answer about several items: {number of the item, from 1 to `count`: its texts}; items without usable texts are absent.

    Accepted are a JSON object whose keys are the numbers (also "item 2"), and a JSON list of exactly `count` lists, also within ``` or
    other text. Anything else is {}, because texts must not be given to the wrong item.
    """
    fenced = FENCE.search(answer)
    for candidate in (answer, fenced[1] if fenced else "", _between(answer, "{", "}"), _between(answer, "[", "]")):
        value = _json(candidate)
        if isinstance(value, list) and len(value) == count and all(isinstance(v, list) for v in value):
            value = dict(enumerate(value, start=1))
        if isinstance(value, dict) and (found := _numbered(value, count)):
            return found
    return {}


def _numbered(value: dict[object, object], count: int) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for key, texts in value.items():
        number = NUMBER.fullmatch(str(key))
        if number is None or not 1 <= int(number[1]) <= count or int(number[1]) in found:
            return {}
        if isinstance(texts, list) and all(isinstance(t, str) for t in texts) and (cleaned := _clean(texts)):
            found[int(number[1])] = cleaned
    return found


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _between(answer: str, opening: str, closing: str) -> str:
    start, end = answer.find(opening), answer.rfind(closing)
    return answer[start : end + 1] if 0 <= start < end else ""


def _from_json(text: str) -> list[str] | None:
    value = _json(text)
    if isinstance(value, dict):
        value = next((v for v in value.values() if isinstance(v, list)), None)
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        return None
    return value


def _clean(texts: list[str]) -> list[str]:
    found: dict[str, str] = {}
    for text in texts:
        plain = " ".join(text.split()).strip("\"'\u201c\u201d ")
        if plain and len(plain) <= LONGEST and "\x00" not in plain:
            found.setdefault(plain.casefold(), plain)
    return list(found.values())
