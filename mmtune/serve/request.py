"""Read and validate request bodies, which are JSON or a form with files.

JSON and forms have the same fields. The name of a value's field is its modality. Text is sent as a string. Other values are
uploaded as a file, or sent in JSON as {"base64": "..."}. In a form, a file may also be in the field `file`; its modality then
follows from the extension of the file name. A string from a request is never used as a path or URL.
"""

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
from mmtune.serve.error_responses import RequestError, invalid_error
from mmtune.serve.schemas import RequestFields, SearchFields
from mmtune.serve.settings import Limits

if TYPE_CHECKING:
    from starlette.requests import Request

FORM, JSON = "multipart/form-data", "application/json"
MAX_FORM_FIELDS = 64
"""Maximum number of fields of a form that are not files."""
OLD_NAMES = {"per": "group_by"}
"""{old name of a field: its name now}. Old names are still accepted."""

Fields = TypeVar("Fields", bound=RequestFields)


@dataclass
class RequestBody:
    """The contents of a request body.

    values: {modality: bytes}; they are not yet checked (see `decoded_bytes`)
    fields: all other fields
    """

    values: dict[str, bytes] = field(default_factory=dict)
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchRequest:
    """A validated search request. The query is either one value of one modality, or the item with the id `fields.item`."""

    fields: SearchFields
    modality: str | None = None
    data: bytes = b""


async def read_body(request: "Request", limits: Limits) -> RequestBody:
    """Read the body of a request.

    Raises RequestError: 415 if it is neither JSON nor a form, 422 if it is not valid. Its size and time are limited by
    `mmtune.serve.body_limit`.
    """
    kind = _media_type(request)
    if kind == FORM:
        return await _form(request, limits)
    if kind == JSON:
        return _json_body(await request.body())
    raise RequestError(415, "unsupported", f"unsupported media type {kind[:80]!r}: send {JSON} or {FORM}")


async def read_json(request: "Request") -> JsonObject:
    """Read a body that must be a JSON object.

    The media type must be JSON. Browsers send this type to another site only if that site allows it, which protects
    against forged requests.
    """
    if _media_type(request) != JSON:
        raise RequestError(415, "unsupported", f"unsupported media type: send {JSON}")
    return _json_object(await request.body())


def validated(model: type[Fields], fields: Mapping[str, object], limits: Limits, other_fields: Sequence[str] = ()) -> Fields:
    """Validate the fields as `model`. Fields that are None are ignored. Raises RequestError 422, naming the first wrong field.

    other_fields: more names of valid fields, for the message about an unknown field
    """
    given: dict[str, object] = {}
    for name, value in fields.items():
        new = OLD_NAMES.get(name, name)
        name = new if new in model.model_fields else name
        if name in given:
            raise invalid_error(f"{name}: this field is given twice")
        if name not in model.model_fields:
            raise invalid_error(f"{name[:80]}: unknown field; the fields are {', '.join([*other_fields, *model.model_fields])}")
        if value is not None:
            given[name] = value
    try:
        return model.model_validate(given, context=limits)
    except ValidationError as e:
        error = e.errors(include_url=False, include_input=False)[0]
        where, limit = ".".join(map(str, error["loc"][:1])), error.get("ctx", {}).get("limit")
        line = f"{where}: {error['msg']}" if where else error["msg"]
        raise (invalid_error(line) if limit is None else invalid_error(line, limit=limit)) from None


def parse_search(body: RequestBody, limits: Limits) -> SearchRequest:
    """Validate the search that a body describes. Raises RequestError 422, naming the field."""
    fields = validated(SearchFields, body.fields, limits, modalities.names())
    count = len(body.values) + (fields.item is not None)
    if count != 1:
        raise invalid_error(f"give exactly one query, in one of {', '.join([*modalities.names(), 'item'])}; got {count}")
    modality, data = next(iter(body.values.items()), (None, b""))
    return SearchRequest(fields, modality, data)


def decoded_bytes(name: str, data: bytes, limits: Limits) -> int:
    """Return the bytes of memory that decoding a value takes. Raises RequestError 422 if it exceeds a limit of its modality."""
    modality = modalities.get(name)
    try:
        return modality.check_header(data, **{k: v for k, v in limits.values.items() if k in modality.options})
    except Rejected as e:
        raise invalid_error(f"{name}: {e}", field=name) from None


def _media_type(request: "Request") -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _json_object(data: bytes) -> JsonObject:
    def refuse_constant(name: str) -> None:
        raise ValueError(f"{name} is not allowed in JSON")

    try:
        document = json.loads(data, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as e:
        raise invalid_error(f"the body is not JSON: {str(e)[:200]}") from None
    if not isinstance(document, dict):
        raise invalid_error("the body must be a JSON object, {...}")
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
    """Convert a value from JSON, or from a form field that is not a file, to bytes."""
    if isinstance(value, str) and modalities.get(name).language:
        return value.encode("utf-8", "replace")
    if isinstance(value, dict) and set(value) == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except (binascii.Error, ValueError):
            raise invalid_error(f"{name}: this is not valid base64") from None
    if modalities.get(name).language:
        raise invalid_error(f"{name}: must be a string")
    raise invalid_error(f'{name}: upload a file ({FORM}), or send {{"base64": "..."}}; the server does not open paths or URLs')


async def _form(request: "Request", limits: Limits) -> RequestBody:
    from starlette.datastructures import UploadFile

    body = RequestBody()
    options = {"max_files": len(modalities.names()), "max_fields": MAX_FORM_FIELDS, "max_part_size": limits.max_bytes}
    async with request.form(**options) as form:
        for name, value in form.multi_items():
            if name in body.fields or name in body.values:
                raise invalid_error(f"{name}: this field is given twice")
            if not isinstance(value, UploadFile):
                if name in modalities.names():
                    body.values[name] = _value(name, value)
                else:
                    body.fields[name] = value
                continue
            name = name if name in modalities.names() else _modality_of_file(name, value.filename or "")
            if name in body.values:
                raise invalid_error(f"{name}: this field is given twice")
            body.values[name] = await value.read()
    return body


def _modality_of_file(field: str, filename: str) -> str:
    """Return the modality that belongs to the extension of a file name."""
    ending = filename.rpartition(".")[2].lower() if "." in filename else ""
    if field != "file":
        raise invalid_error(f"{field}: no field for a file; such fields are {', '.join([*modalities.names(), 'file'])}")
    known = modalities.by_extension()
    if ending not in known:
        fix = f"name the field {' or '.join(modalities.names())}, or use one of these extensions: {', '.join(known)}"
        raise invalid_error(f"file: unknown file name extension {ending[:20]!r}; {fix}")
    return known[ending]
