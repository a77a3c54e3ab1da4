"""The JSON bodies of the REST API, from which the OpenAPI document is generated.

Request bodies are pydantic models, without the values of a query or item. The fields of values are named after the modalities,
are read as bytes in `mmtune.serve.request`, and are added to the OpenAPI document in `mmtune.serve.openapi`.

Responses are typed dicts, not pydantic objects, because writing the response of a search takes half the time without them.
"""

import json
from typing import (
    Annotated,
    NotRequired,  # before Python 3.12, pydantic needs TypedDict from typing_extensions (below)
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
    """Create a validation error. `limit` becomes a field of the error's JSON body."""
    return PydanticCustomError("invalid", message, None if limit is None else {"limit": limit})


def _limits(info: ValidationInfo) -> Limits:
    return info.context if isinstance(info.context, Limits) else Limits()


def _string(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not encodable(value):
        raise _error("must be a string")
    return value or None


def _short_string(value: object) -> object:
    if isinstance(value, str) and (not encodable(value) or len(value.encode()) > ID_BYTES):
        raise _error(f"must have at most {ID_BYTES} bytes of UTF-8")
    return value


def _count(value: object, info: ValidationInfo) -> int:
    limit = _limits(info).max_k
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise _error(f"must be a whole number from 1 to {limit}", limit)
    return value


def _filter(value: object, info: ValidationInfo) -> str | None:
    condition, limit = (_string(value) or "").strip(), _limits(info).max_filter
    if len(condition) > limit:
        raise _error(f"has {len(condition)} characters; the limit is {limit}", limit)
    return condition or None


def _flag(value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "1", "0", ""):
        return value.lower() in ("true", "1")
    if not isinstance(value, bool):
        raise _error("must be true or false")
    return value


def _modality_names(value: object) -> list[str] | None:
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")] if value else None
    if value is not None and not (isinstance(value, list) and all(name in modalities.names() for name in value)):
        raise _error(f"must be a list of names among {', '.join(modalities.names())}")
    return value or None


def _metadata(value: object) -> object:
    if isinstance(value, str):  # from a form field
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as e:
            raise _error(f"is not valid JSON: {str(e)[:200]}") from None
    if not isinstance(value, dict | None):
        raise _error("must be a JSON object")
    return value or {}


String = Annotated[str | None, BeforeValidator(_string)]
ShortString = Annotated[str, BeforeValidator(_short_string)]


class RequestFields(BaseModel):
    """Base class of all request bodies. An unknown field is an error."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SearchFields(RequestFields):
    """Body of POST /search, in addition to the query's value."""

    item: String = Field(
        None, description="id of an item whose embedding is the query, instead of a value; it is not in the results"
    )
    k: Annotated[int, BeforeValidator(_count)] = Field(10, description="number of results")
    filter: Annotated[str | None, BeforeValidator(_filter)] = Field(
        None, description="condition on metadata, for example category = 'Apple' and price < 3"
    )
    version: String = Field(None, description="live (default), staged, or the name of a version")
    interleave: String = Field(
        None,
        description="staged, or the name of a version: interleave its results with those of the live version in one list. "
        "Each result names its team; send clicks to /feedback with the `query` of the response; /shadow reports which version "
        "users prefer",
    )
    hybrid: Annotated[bool, BeforeValidator(_flag)] = Field(
        False, description="combine the vector search with BM25 over captions"
    )
    target: Annotated[list[str] | None, BeforeValidator(_modality_names)] = Field(
        None, description="return only results whose match is in one of these modalities"
    )
    group_by: String = Field(None, description="group, or a metadata column; keep only the best result for each of its values")

    @model_validator(mode="after")
    def _one_version(self) -> Self:
        if self.interleave and self.version:
            raise _error(
                "interleave: cannot be used together with version, because one of the two versions is always the live one"
            )
        return self


class ItemFields(RequestFields):
    """Body of PUT /items/ID, in addition to the item's values."""

    group: String = Field(None, description="items of one group show the same thing, for example photos of one product")
    meta: Annotated[dict[str, object], BeforeValidator(_metadata)] = Field(
        {}, description="metadata; in a form, as a JSON string"
    )


class FeedbackFields(RequestFields):
    """Body of POST /feedback: a click on a result, or a judgment of a result."""

    query: ShortString = Field(description="the `query` of the search response")
    item: ShortString
    kind: ShortString = Field(json_schema_extra={"enum": list(VERDICT_OF)})
    version: ShortString | None = None
    rank: int | None = None
    score: float | None = None
    page: ShortString | None = Field(None, description="where the results were shown")


class ResultDocument(TypedDict):
    """One result of a search. `team` and `version` are present only in an interleaved search."""

    id: str
    score: Annotated[
        float,
        Field(
            description="cosine similarity of query and item; in a hybrid search, the fused score; of a re-ranked result, that of the re-ranker"
        ),
    ]
    modality: Annotated[str | None, Field(description="modality of the item that matched; null if only BM25 matched")]
    group: str | None
    meta: dict[str, JsonValue]
    values: Annotated[dict[str, str], Field(description="modality -> URL of the item's value on this server")]
    team: NotRequired[str]
    version: NotRequired[str]


class SearchDocument(TypedDict):
    """Response of POST /search. All results come from one version, unless the search is interleaved."""

    version: str
    fingerprint: Annotated[str, Field(description="fingerprint of the model that encoded the query and the items")]
    query: Annotated[str, Field(description="id of the query, for /feedback")]
    seconds: float
    results: list[ResultDocument]


class ItemDocument(TypedDict):
    """An item: its group, metadata, and the URLs of its values."""

    id: str
    group: str | None
    meta: dict[str, JsonValue]
    values: dict[str, str]


class PutDocument(TypedDict):
    """Response of PUT. `behind` lists versions in which the change has not been made yet."""

    id: str
    created: bool
    changed: bool
    behind: list[str]


class DeleteDocument(TypedDict):
    """Response of DELETE. `behind` lists versions in which the change has not been made yet."""

    id: str
    deleted: bool
    behind: list[str]


class VersionDocument(TypedDict):
    """One version of the collection. `open` says whether its model and vectors are loaded."""

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
    """The live version, the previous live version, the staged version, and all versions."""

    live: str | None
    version: str | None
    previous: str | None
    since: str | None
    generation: int | None
    staged: str | None
    versions: list[VersionDocument]


class ReadyDocument(TypedDict):
    """Response when the live version's model and vectors are loaded."""

    ready: bool
    version: str


class LimitsDocument(TypedDict):
    """Limits on one request. `values` has the limits on values of each modality."""

    max_bytes: int
    max_k: int
    max_filter: int
    max_concurrent: int
    values: dict[str, dict[str, float]]


class HealthDocument(TypedDict):
    """Response when the server is running."""

    status: str


class ErrorFields(TypedDict):
    """An error. Some codes have more fields."""

    code: Annotated[str, Field(description="kind of error, for programs")]
    message: Annotated[str, Field(description="for people: what is wrong and how to fix it")]


class ErrorDocument(TypedDict):
    """Body of the response to every refused request."""

    error: ErrorFields
