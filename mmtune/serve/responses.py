"""Convert results and exceptions of the library to JSON bodies and HTTP errors of the REST API."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from mmtune.errors import MissingExtra, MmtuneError, ModelError
from mmtune.serve.error_responses import RequestError
from mmtune.serve.schemas import ResultDocument, SearchDocument

if TYPE_CHECKING:
    from mmtune.index.collection_results import SearchResponse
    from mmtune.index.item_catalog import Item

log = logging.getLogger("mmtune.serve")
CODES = {404: "not_found", 409: "conflict", 422: "invalid", 503: "not_open"}
"""{HTTP status: code of the error}."""


@contextlib.contextmanager
def translate_errors(default_status: int) -> Iterator[None]:
    """Context manager that converts the library's errors to RequestErrors, with `request_error`."""
    try:
        yield
    except MmtuneError as e:
        raise request_error(e, default_status) from None
    except RecursionError:
        raise RequestError(default_status, CODES[default_status], "a filter or a JSON value is nested too deeply") from None


def request_error(error: MmtuneError, default_status: int) -> RequestError:
    """Convert an error of the library to a RequestError. Its message is the error's, without a leading file path.

    The status is 501 for a missing extra, 503 for an index version that could not be loaded, and `default_status` for all
    other errors, which the caller has caused.
    """
    if isinstance(error, MissingExtra):
        return RequestError(501, "missing_extra", str(error))
    if isinstance(error, ModelError):
        log.error("%s", error)
        return RequestError(503, "not_open", "the index version could not be loaded; see the server log")
    return RequestError(default_status, CODES[default_status], strip_leading_path(error))


def search_document(response: "SearchResponse", items: "Mapping[str, Item]") -> SearchDocument:
    """Convert a search result to the response body. Every result contains the URLs of its item's values."""
    results: list[ResultDocument] = []
    for result in response.results:
        item = items.get(result.id)
        values = {m: content_url(item.id, m) for m in item.contents} if item else {}
        results.append({**result, "values": values})  # type: ignore[typeddict-item]
    return {
        "version": response.version,
        "fingerprint": response.fingerprint,
        "query": response.query,
        "seconds": response.seconds,
        "results": results,
    }


def strip_leading_path(error: Exception) -> str:
    """Return the error's message without the file path that may precede it, because paths of the server are not public."""
    line = str(error)
    head, colon, rest = line.partition(": ")
    return rest if colon and head.startswith("/") else line


def content_url(id: str, modality: str) -> str:
    """URL of an item's value on this server."""
    return f"/items/{quote(id, safe='')}/value/{modality}"


def item_not_found_error(id: str) -> RequestError:
    """Create the 404 error for an item that the collection does not contain."""
    return RequestError(404, "no_item", f"there is no item {id[:200]!r}")


def no_live_version_error() -> RequestError:
    """Create the 503 error for a collection without a live version."""
    return RequestError(503, "not_live", "no version is live yet; promote one with `mmtune index promote`")
