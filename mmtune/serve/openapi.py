"""OpenAPI of the request bodies that routes read themselves: the models' schemas, plus one field for each modality.

FastAPI would read a whole body before it checks it; the routes refuse a body that is too large or too slow while it arrives.
"""

from pydantic import BaseModel

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.serve.request import FORM, JSON
from mmtune.serve.schemas import ErrorDocument, FeedbackFields, ItemFields, SearchFields

FILE: JsonObject = {"type": "string", "format": "binary"}
ERROR_RESPONSES: dict[int | str, JsonObject] = {"4XX": {"model": ErrorDocument, "description": "The request was refused"}}


def _values(form: bool) -> JsonObject:
    """The schema of a value by modality: a string where it is inline; else a file in a form, base64 in JSON."""
    encoded = {"type": "object", "properties": {"base64": {"type": "string"}}, "required": ["base64"]}
    other = FILE if form else encoded
    return {name: {"type": "string"} if modalities.get(name).language else other for name in modalities.names()}


def _body(model: type[BaseModel], form_fields: JsonObject | None = None) -> JsonObject:
    schema = model.model_json_schema()
    as_json = {**schema, "properties": {**_values(False), **schema["properties"]}}
    as_form = {**schema, "properties": {**_values(True), **schema["properties"], **(form_fields or {})}}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": as_json}, FORM: {"schema": as_form}}}}


def search_body() -> JsonObject:
    """Of POST /search: one value, or an item."""
    return _body(SearchFields, {"file": {**FILE, "description": "a value whose file name's ending tells the modality"}})


def item_body() -> JsonObject:
    """Of PUT /items/ID: values, group, metadata."""
    return _body(ItemFields)


def feedback_body() -> JsonObject:
    """Of POST /feedback."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": FeedbackFields.model_json_schema()}}}}
