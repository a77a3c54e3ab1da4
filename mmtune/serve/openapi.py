"""The bodies that routes read themselves, told to OpenAPI."""

from typing import Any

from mmtune import modalities
from mmtune.serve.request import FORM, JSON

WORDS: dict[str, Any] = {"type": "string"}
REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {
        "description": "Refused: what is wrong, for programs (code) and people (message)",
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "properties": {"error": {"type": "object", "properties": {"code": WORDS, "message": WORDS}}},
                }
            }
        },
    }
}
ASK: dict[str, Any] = {
    "item": {**WORDS, "description": "instead of a value: an item's id; itself is left out of the answer"},
    "k": {"type": "integer", "default": 10},
    "filter": {**WORDS, "description": "over metadata: category = 'Apple' and price < 3"},
    "version": {**WORDS, "description": "live (default), staged, or a version's name"},
    "interleave": {
        **WORDS,
        "description": "staged, or a version's name: one list drafted from live and that version in turn; results say their "
        "team, clicks go to /feedback with the answer's query, and /shadow says who is preferred",
    },
    "hybrid": {"type": "boolean", "default": False, "description": "fused with BM25 over the items' words"},
    "target": {"type": "array", "items": WORDS, "description": "only what these modalities found"},
    "per": {**WORDS, "description": "group, or a column of metadata: one answer for each, the best"},
}


def _values(files: bool) -> dict[str, Any]:
    out = {}
    for name in modalities.names():
        if modalities.get(name).language:
            out[name] = WORDS
        elif files:
            out[name] = {**WORDS, "format": "binary"}
        else:
            out[name] = {"type": "object", "properties": {"base64": WORDS}, "required": ["base64"]}
    return out


def _body(more: dict[str, Any], form: dict[str, Any] | None = None) -> dict[str, Any]:
    content = {
        JSON: {"schema": {"type": "object", "properties": {**_values(False), **more}}},
        FORM: {"schema": {"type": "object", "properties": {**_values(True), **more, **(form or {})}}},
    }
    return {"requestBody": {"required": True, "content": content}}


def search_body() -> dict[str, Any]:
    """Of POST /search: one value, or an item."""
    file = {**WORDS, "format": "binary", "description": "a value whose name's ending says what it is"}
    return _body(ASK, {"file": file})


def put_body() -> dict[str, Any]:
    """Of PUT /items/ID: values, group, metadata."""
    return _body({"group": WORDS, "meta": {"type": "object"}}, {"meta": {**WORDS, "description": "JSON"}})


FEEDBACK: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {
                "schema": {
                    "type": "object",
                    "required": ["query", "item", "kind"],
                    "properties": {
                        "query": {**WORDS, "description": "the `query` of an answer"},
                        "item": WORDS,
                        "kind": {**WORDS, "enum": ["click", "match", "not_a_match"]},
                        "version": WORDS,
                        "rank": {"type": "integer"},
                        "score": {"type": "number"},
                    },
                }
            }
        },
    }
}
