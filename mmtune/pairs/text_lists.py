"""Read a list of short texts out of the answer of a language model: JSON, or lines with numbers or dashes."""

import json
import re

FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
LINE = re.compile(r"\s*(?:\d{1,2}[.):]|[-*\u2022])\s+(.*\S)")
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


def _between(answer: str, opening: str, closing: str) -> str:
    start, end = answer.find(opening), answer.rfind(closing)
    return answer[start : end + 1] if 0 <= start < end else ""


def _from_json(text: str) -> list[str] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
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
