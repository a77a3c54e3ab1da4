"""The JSON bodies of the REST API, from which OpenAPI is generated: requests are pydantic models, responses typed dicts.

A query's or an item's values are not fields of the requests: they are named by the modalities (`mmtune.serve.openapi` adds
them), and come as bytes (`mmtune.serve.request`). Responses are not pydantic objects because a search's answer is written to
JSON in half the time without them, whatever the depth of an item's metadata.
"""

import json
from typing import (
    Annotated,
    NotRequired,  # pydantic needs these before Python 3.12
    Self,
)

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict

from mmtune import modalities
from mmtune.index.feedback.feedback import VERDICT_OF
from mmtune.index.query.filters import encodable
from mmtune.index.stores.store_rows import ID_BYTES
from mmtune.serve.settings import Limits


def _error(message: str, limit: int | None = None) -> PydanticCustomError:
    """A validation error; `limit` becomes a field of the error's JSON body."""
    return PydanticCustomError("invalid", message, None if limit is None else {"limit": limit})


def _limits(info: ValidationInfo) -> Limits:
    return info.context if isinstance(info.context, Limits) else Limits()


def _string(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not encodable(value):
        raise _error("a string")
    return value or None


def _short_string(value: object) -> object:
    if isinstance(value, str) and (not encodable(value) or len(value.encode()) > ID_BYTES):
        raise _error(f"at most {ID_BYTES} bytes of UTF-8")
    return value


def _count(value: object, info: ValidationInfo) -> int:
    limit = _limits(info).max_k
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise _error(f"a whole number, 1 to {limit}", limit)
    return value


def _filter(value: object, info: ValidationInfo) -> str | None:
    condition, limit = (_string(value) or "").strip(), _limits(info).max_filter
    if len(condition) > limit:
        raise _error(f"{len(condition)} characters, limit {limit}", limit)
    return condition or None


def _flag(value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0", ""):
        return value.lower() in ("true", "1")
    if not isinstance(value, bool):
        raise _error("true or false")
    return value


def _modality_names(value: object) -> list[str] | None:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")] if value else None
    if value is not None and not (isinstance(value, list) and all(name in modalities.names() for name in value)):
        raise _error(f"names among {', '.join(modalities.names())}")
    return value or None


def _metadata(value: object) -> object:
    if isinstance(value, str):  # as a form sends it
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as e:
            raise _error(f"not JSON: {str(e)[:200]}") from None
    if not isinstance(value, dict | None):
        raise _error("a JSON object")
    return value or {}


String = Annotated[str | None, BeforeValidator(_string)]
ShortString = Annotated[str, BeforeValidator(_short_string)]


class RequestFields(BaseModel):
    """The base of all request bodies: an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SearchFields(RequestFields):
    """POST /search, beside the query's value."""

    item: String = Field(None, description="instead of a value: an item's id, whose own vector is the query; it is no result")
    k: Annotated[int, BeforeValidator(_count)] = Field(10, description="number of results")
    filter: Annotated[str | None, BeforeValidator(_filter)] = Field(
        None, description="a condition on metadata: category = 'Apple' and price < 3"
    )
    version: String = Field(None, description="live (default), staged, or a version's name")
    interleave: String = Field(
        None,
        description="staged, or a version's name: one list drafted from the live and that version in turn. Results name their "
        "team; clicks go to /feedback with the answer's query; /shadow says which version is preferred",
    )
    hybrid: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, description="fuse the vector results with BM25 over captions"
    )
    target: Annotated[list[str] | None, BeforeValidator(_modality_names)] = Field(
        None, description="only results that these modalities matched"
    )
    group_by: String = Field(None, description="group, or a metadata column: the best result of each of its values")

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if self.interleave and self.version:
            raise _error("interleave: names the version beside the live one, so give no version")
        return self


class ItemFields(RequestFields):
    """PUT /items/ID, beside the item's values."""

    group: String = Field(None, description="items of one group are the same thing, such as photos of one product")
    meta: Annotated[dict[str, object], BeforeValidator(_metadata)] = Field({}, description="metadata; in a form, as JSON")


class FeedbackFields(RequestFields):
    """POST /feedback: a click on a result, or a judgment of it."""

    query: ShortString = Field(description="the `query` of an answer")
    item: ShortString
    kind: ShortString = Field(json_schema_extra={"enum": list(VERDICT_OF)})
    version: ShortString | None = None
    rank: int | None = None
    score: float | None = None
    page: ShortString | None = Field(None, description="where the answer was shown")


class ResultDocument(TypedDict):
    """One result. team and version: only of an interleaved search."""

    id: str
    score: Annotated[float, Field(description="cosine similarity of query and item; of a hybrid search the fused score")]
    modality: Annotated[str | None, Field(description="whose vectors matched; null: only BM25 did")]
    group: str | None
    meta: dict[str, JsonValue]
    values: Annotated[dict[str, str], Field(description="modality -> address of the item's own value on this server")]
    team: NotRequired[str]
    version: NotRequired[str]


class SearchDocument(TypedDict):
    """The answer of POST /search; every result comes from one version, unless the search is interleaved."""

    version: str
    fingerprint: Annotated[str, Field(description="of the model that encoded the query and the items")]
    query: Annotated[str, Field(description="the query's id, for /feedback")]
    seconds: float
    results: list[ResultDocument]


class ItemDocument(TypedDict):
    """An item: its group, metadata, and the addresses of its values."""

    id: str
    group: str | None
    meta: dict[str, JsonValue]
    values: dict[str, str]


class PutDocument(TypedDict):
    """What PUT did. behind: versions that could not take the change yet."""

    id: str
    created: bool
    changed: bool
    behind: list[str]


class DeleteDocument(TypedDict):
    """What DELETE did. behind: versions that could not take the change yet."""

    id: str
    deleted: bool
    behind: list[str]


class VersionDocument(TypedDict):
    """One version of the collection. open: its model and vectors are loaded."""

    version: str
    fingerprint: str | None
    dim: JsonValue
    modalities: JsonValue
    items: JsonValue
    created: str | None
    behind: JsonValue
    live: bool | None
    open: bool


class VersionsDocument(TypedDict):
    """The live version, the one before it, the staged one, and all that exist."""

    live: str | None
    version: str | None
    previous: str | None
    since: str | None
    generation: int | None
    staged: str | None
    versions: list[VersionDocument]


class ReadyDocument(TypedDict):
    """The live version's model and vectors are loaded."""

    ready: bool
    version: str


class LimitsDocument(TypedDict):
    """What one request may contain. values: modality -> its own limits."""

    max_bytes: int
    max_k: int
    max_filter: int
    max_concurrent: int
    values: dict[str, dict[str, float]]


class HealthDocument(TypedDict):
    """The process runs."""

    status: str


class ErrorFields(TypedDict):
    """An error; some codes have further fields."""

    code: Annotated[str, Field(description="for programs")]
    message: Annotated[str, Field(description="for people: what is wrong and what to do")]


class ErrorDocument(TypedDict):
    """The body of every refused request."""

    error: ErrorFields
