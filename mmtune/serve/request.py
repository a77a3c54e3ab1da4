"""Reads and validates request bodies: JSON, or a form with files. A caller's string is a value, never a path or a URL.

Both carry the same fields. A value goes under its modality's name: a caption as it is, anything else as an uploaded file, or in
JSON as {"base64": "..."}. In a form a file may also come as `file`; the ending of its name then tells the modality (and nothing
else of the name is used).
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.errors import Rejected
from mmtune.serve.error_responses import RequestError, invalid
from mmtune.serve.schemas import RequestFields, SearchFields
from mmtune.serve.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request

FORM, JSON = "multipart/form-data", "application/json"
MAX_FORM_FIELDS = 64
OLD_NAMES = {"per": "group_by"}
"""Earlier names of fields, which are still accepted."""

Fields = TypeVar("Fields", bound=RequestFields)


@dataclass
class RequestBody:
    """values: modality -> bytes, not yet checked (see `decoded_bytes`); fields: everything else."""

    values: dict[str, bytes] = field(default_factory=dict)
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchRequest:
    """A validated search: one value of one modality, or an item's id, and the other fields."""

    fields: SearchFields
    modality: str | None = None
    data: bytes = b""


async def read_body(request: "Request", limits: Limits) -> RequestBody:
    """The body of a request. RequestError 408 (too slow), 413, 415 (neither JSON nor a form), 422."""
    kind = _media_type(request)
    try:
        async with asyncio.timeout(limits.body_seconds):
            if kind == FORM:
                return await _form(request, limits)
            if kind == JSON:
                return _json_body(await request.body())
    except TimeoutError:
        raise _too_slow(limits) from None
    raise RequestError(415, "unsupported", f"send {JSON} or {FORM}, not {kind[:80] or 'a body without a type'}")


async def read_json(request: "Request", limits: Limits) -> JsonObject:
    """A body that is a JSON object. The media type is required because a browser sends it across sites only when allowed to."""
    if _media_type(request) != JSON:
        raise RequestError(415, "unsupported", f"send {JSON}")
    try:
        async with asyncio.timeout(limits.body_seconds):
            return _json_object(await request.body())
    except TimeoutError:
        raise _too_slow(limits) from None


def validated(model: type[Fields], fields: Mapping[str, object], limits: Limits, other_fields: Sequence[str] = ()) -> Fields:
    """The fields as `model`; those that are None count as absent. RequestError 422 names the first that is wrong.

    other_fields: names that a message about an unknown field lists beside the model's.
    """
    given: dict[str, object] = {}
    for name, value in fields.items():
        new = OLD_NAMES.get(name, name)
        name = new if new in model.model_fields else name
        if name in given:
            raise invalid(f"{name}: comes twice")
        if name not in model.model_fields:
            raise invalid(f"{name[:80]}: no such field; there are {', '.join([*other_fields, *model.model_fields])}")
        if value is not None:
            given[name] = value
    try:
        return model.model_validate(given, context=limits)
    except ValidationError as e:
        error = e.errors(include_url=False, include_input=False)[0]
        where, limit = ".".join(map(str, error["loc"][:1])), error.get("ctx", {}).get("limit")
        line = f"{where}: {error['msg']}" if where else error["msg"]
        raise (invalid(line) if limit is None else invalid(line, limit=limit)) from None


def parse_search(body: RequestBody, limits: Limits) -> SearchRequest:
    """The search that a body describes. RequestError 422 names the field."""
    fields = validated(SearchFields, body.fields, limits, modalities.names())
    count = len(body.values) + (fields.item is not None)
    if count != 1:
        raise invalid(f"a query is one of {', '.join([*modalities.names(), 'item'])}; got {count}")
    modality, data = next(iter(body.values.items()), (None, b""))
    return SearchRequest(fields, modality, data)


def decoded_bytes(name: str, data: bytes, limits: Limits) -> int:
    """The bytes of memory that decoding a value takes. RequestError 422 where it is over the limits of its modality."""
    modality = modalities.get(name)
    try:
        return modality.check_header(data, **{k: v for k, v in limits.values.items() if k in modality.options})
    except Rejected as e:
        raise invalid(f"{name}: {e}", field=name) from None


def _media_type(request: "Request") -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _too_slow(limits: Limits) -> RequestError:
    return RequestError(408, "too_slow", f"the request did not arrive within {limits.body_seconds:g} s")


def _json_object(data: bytes) -> JsonObject:
    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        document = json.loads(data, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as e:
        raise invalid(f"the body is not JSON: {str(e)[:200]}") from None
    if not isinstance(document, dict):
        raise invalid("the body is a JSON object, {...}")
    return document


def _json_body(data: bytes) -> RequestBody:
    body = RequestBody()
    for name, value in _json_object(data).items():
        if name not in modalities.names():
            body.fields[name] = value
        elif value is not None:
            body.values[name] = _value(name, value)
    return body


def _value(name: str, value: object) -> bytes:
    """The bytes of a value in JSON, or of a form's plain field."""
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


async def _form(request: "Request", limits: Limits) -> RequestBody:
    from starlette.datastructures import UploadFile

    body = RequestBody()
    options = {"max_files": len(modalities.names()), "max_fields": MAX_FORM_FIELDS, "max_part_size": limits.max_bytes}
    async with request.form(**options) as form:
        for name, value in form.multi_items():
            if name in body.fields or name in body.values:
                raise invalid(f"{name}: comes twice")
            if not isinstance(value, UploadFile):
                if name in modalities.names():
                    body.values[name] = _value(name, value)
                else:
                    body.fields[name] = value
                continue
            name = name if name in modalities.names() else _modality_of_file(name, value.filename or "")
            if name in body.values:
                raise invalid(f"{name}: comes twice")
            body.values[name] = await value.read()
    return body


def _modality_of_file(field: str, filename: str) -> str:
    """The modality that the ending of a file's name tells."""
    ending = filename.rpartition(".")[2].lower() if "." in filename else ""
    if field != "file":
        raise invalid(f"{field}: no field for a file; there are {', '.join([*modalities.names(), 'file'])}")
    known = modalities.by_extension()
    if ending not in known:
        fix = f"name the field {' or '.join(modalities.names())}, or end the file's name in one of {', '.join(known)}"
        raise invalid(f"file: its name ends in {ending[:20]!r}; {fix}")
    return known[ending]
