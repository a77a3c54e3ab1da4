"""OpenAPI schemas of request bodies: the schemas of the pydantic models, with one more field for each modality.

They are written here because the routes read bodies themselves. FastAPI would read a whole body before checking it; the routes
refuse a body that is too large or too slow while it arrives.
"""

from pydantic import BaseModel

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.serve.request import FORM, JSON
from mmtune.serve.schemas import ErrorDocument, FeedbackFields, ItemFields, SearchFields

FILE: JsonObject = {"type": "string", "format": "binary"}
ERROR_RESPONSES: dict[int | str, JsonObject] = {"4XX": {"model": ErrorDocument, "description": "The request was refused"}}


def _values(form: bool) -> JsonObject:
    """{modality: schema of its value}. Text is a string; other values are a file in a form, or base64 in JSON."""
    encoded = {"type": "object", "properties": {"base64": {"type": "string"}}, "required": ["base64"]}
    other = FILE if form else encoded
    return {name: {"type": "string"} if modalities.get(name).language else other for name in modalities.names()}


def _body(model: type[BaseModel], form_fields: JsonObject | None = None) -> JsonObject:
    schema = model.model_json_schema()
    as_json = {**schema, "properties": {**_values(False), **schema["properties"]}}
    as_form = {**schema, "properties": {**_values(True), **schema["properties"], **(form_fields or {})}}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": as_json}, FORM: {"schema": as_form}}}}


def search_body() -> JsonObject:
    """Schema for POST /search: a value, or the id of an item."""
    return _body(
        SearchFields, {"file": {**FILE, "description": "a value whose modality follows from the file name's extension"}}
    )


def item_body() -> JsonObject:
    """Schema for PUT /items/ID: values, group, metadata."""
    return _body(ItemFields)


def feedback_body() -> JsonObject:
    """Schema for POST /feedback."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": FeedbackFields.model_json_schema()}}}}
