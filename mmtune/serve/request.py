"""From an HTTP request to what is asked: JSON, or a form with files. A caller's string is a value, never a path or a URL.

Both carry the same fields. A value goes under its modality's name: words as they are, anything else as an uploaded file, or in
JSON as {"base64": "..."}. In a form a file may also come as `file`; its name's ending says what it is (and nothing else of the
name is looked at).
"""

import asyncio
import base64
import binascii
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmtune import modalities
from mmtune.errors import Rejected
from mmtune.index.query.filters import encodable
from mmtune.serve.error_responses import Refusal, invalid
from mmtune.serve.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request

FORM, JSON = "multipart/form-data", "application/json"
MANY = 64  # fields of a form


@dataclass
class Body:
    """values: modality -> bytes, which nobody has looked at yet (`admitted`); fields: all the rest."""

    values: dict[str, bytes] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)


async def read_body(request: "Request", limits: Limits) -> Body:
    """The body of a request. Refusal 408, 413, 415, 422."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == FORM:
                return await _form(request, limits)
            if kind == JSON:
                return _json(await request.body())
    except TimeoutError:
        raise Refusal(408, "too_slow", f"the request did not arrive within {limits.body_seconds:g} s") from None
    raise Refusal(415, "unsupported", f"send {JSON} or {FORM}, not {kind[:80] or 'a body without a type'}")


async def read_json(request: "Request", limits: Limits) -> dict[str, Any]:
    """A body that is a JSON object. The type is asked for because a browser sends it across sites only when allowed to."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise Refusal(415, "unsupported", f"send {JSON}")
    try:
        async with asyncio.timeout(limits.body_seconds):
            return _object(await request.body())
    except TimeoutError:
        raise Refusal(408, "too_slow", f"the request did not arrive within {limits.body_seconds:g} s") from None


def _object(data: bytes) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        found = json.loads(data, parse_constant=refuse)
    except (ValueError, RecursionError) as e:
        raise invalid(f"the body is not JSON: {str(e)[:200]}") from None
    if not isinstance(found, dict):
        raise invalid("the body is a JSON object, {...}")
    return found


def _json(data: bytes) -> Body:
    body = Body()
    for name, value in _object(data).items():
        if name not in modalities.names():
            body.fields[name] = value
        elif value is not None:
            body.values[name] = _value(name, value)
    return body


def _value(name: str, value: Any) -> bytes:
    if isinstance(value, str) and modalities.get(name).language:
        return value.encode("utf-8", "replace")
    if isinstance(value, dict) and set(value) == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            raise invalid(f"{name}: not base64") from None
    if modalities.get(name).language:
        raise invalid(f"{name}: a string")
    raise invalid(f'{name}: upload a file ({FORM}), or give {{"base64": "..."}}; no path and no URL is ever opened')


async def _form(request: "Request", limits: Limits) -> Body:
    from starlette.datastructures import UploadFile

    body = Body()
    async with request.form(max_files=len(modalities.names()), max_fields=MANY, max_part_size=limits.max_bytes) as form:
        for name, value in form.multi_items():
            if name in body.fields or name in body.values:
                raise invalid(f"{name}: comes twice")
            if not isinstance(value, UploadFile):
                if name in modalities.names():
                    body.values[name] = _value(name, value)
                else:
                    body.fields[name] = value
                continue
            name = name if name in modalities.names() else _by_ending(name, value.filename or "")
            if name in body.values:
                raise invalid(f"{name}: comes twice")
            body.values[name] = await value.read()
    return body


def _by_ending(field: str, filename: str) -> str:
    ending = filename.rpartition(".")[2].lower() if "." in filename else ""
    if field != "file":
        raise invalid(f"{field}: no field for a file; there are {', '.join([*modalities.names(), 'file'])}")
    known = modalities.by_extension()
    if ending not in known:
        named = f"name the field {' or '.join(modalities.names())}, or end it in one of {', '.join(known)}"
        raise invalid(f"file: its name ends in {ending[:20]!r}; {named}")
    return known[ending]


def admitted(name: str, data: bytes, limits: Limits) -> int:
    """How many bytes of memory decoding takes of a value within the limits of its modality. Refusal 422 for another."""
    kind = modalities.get(name)
    try:
        return kind.check_header(data, **{k: v for k, v in limits.values.items() if k in kind.options})
    except Rejected as e:
        raise invalid(f"{name}: {e}", field=name) from None


@dataclass(frozen=True)
class Search:
    """A checked question: one value of one modality, or an item's id."""

    modality: str | None = None
    data: bytes = b""
    item: str | None = None
    k: int = 10
    filter: str | None = None
    version: str | None = None
    hybrid: bool = False
    target: tuple[str, ...] | None = None
    per: str | None = None
    interleave: str | None = None


KNOWN = ("k", "filter", "version", "item", "hybrid", "target", "per", "interleave")


def search_of(body: Body, limits: Limits) -> Search:
    """The search that a body asks for. Refusal 422 naming the field."""
    fields = {k: v for k, v in body.fields.items() if v is not None}
    unknown = [f for f in fields if f not in KNOWN]
    if unknown:
        raise invalid(f"{unknown[0][:80]}: no such field; there are {', '.join([*modalities.names(), *KNOWN])}")
    for name in ("item", "filter", "version", "per", "interleave"):
        if name in fields and not (isinstance(fields[name], str) and encodable(fields[name])):
            raise invalid(f"{name}: a string")
    item, target = fields.get("item") or None, fields.get("target") or None
    if len(body.values) + (item is not None) != 1:
        raise invalid(
            f"ask with one of {', '.join([*modalities.names(), 'item'])}; got {len(body.values) + (item is not None)}"
        )
    if isinstance(target, str):
        target = [t.strip() for t in target.split(",")]
    if target is not None and not (isinstance(target, list) and all(t in modalities.names() for t in target)):
        raise invalid(f"target: names among {', '.join(modalities.names())}")
    where = (fields.get("filter") or "").strip() or None
    if where and len(where) > limits.max_filter:
        raise invalid(f"filter: {len(where)} characters, limit {limits.max_filter}", limit=limits.max_filter)
    if fields.get("interleave") and fields.get("version"):
        raise invalid("interleave: names the version beside live, so give no version")
    modality, data = next(iter(body.values.items()), (None, b""))
    return Search(
        modality,
        data,
        item,
        _count(fields.get("k", 10), limits.max_k),
        where,
        fields.get("version"),
        _flag(fields.get("hybrid", False)),
        tuple(target) if target else None,
        fields.get("per") or None,
        fields.get("interleave") or None,
    )


def _count(k: Any, most: int) -> int:
    if isinstance(k, str) and k.strip().isascii() and k.strip().isdigit() and len(k) < 10:
        k = int(k)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
        raise invalid(f"k: a whole number, 1 to {most}", limit=most)
    return k


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0", ""):
        return value.lower() in ("true", "1")
    if not isinstance(value, bool):
        raise invalid("hybrid: true or false")
    return value
