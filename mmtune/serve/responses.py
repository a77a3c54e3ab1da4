"""From results and errors of the library to documents and errors of the REST API."""

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


@contextlib.contextmanager
def errors_as(status: int) -> Iterator[None]:
    """Turns the library's errors within the block into RequestErrors, as `request_error` does."""
    try:
        yield
    except MmtuneError as e:
        raise request_error(e, status) from None
    except RecursionError:
        raise RequestError(status, CODES[status], "nested too deeply") from None


def request_error(error: MmtuneError, status: int) -> RequestError:
    """The RequestError of an error that the caller caused: `status`, and the error's line without this machine's paths.

    Errors that the caller did not cause become 501 (a missing extra) or 503 (a version that cannot answer).
    """
    if isinstance(error, MissingExtra):
        return RequestError(501, "missing_extra", str(error))
    if isinstance(error, ModelError):
        log.error("%s", error)
        return RequestError(503, "not_open", "the version cannot answer; the server's log says why")
    return RequestError(status, CODES[status], without_paths(error))


def search_document(response: "SearchResponse", items: "Mapping[str, Item]") -> SearchDocument:
    """A search's results as JSON; every result names the addresses of its item's values."""
    results: list[ResultDocument] = []
    for result in response.results:
        item = items.get(result.id)
        values = {m: value_address(item.id, m) for m in item.contents} if item else {}
        results.append({**result, "values": values})  # type: ignore[typeddict-item]
    return {
        "version": response.version,
        "fingerprint": response.fingerprint,
        "query": response.query,
        "seconds": response.seconds,
        "results": results,
    }


def without_paths(error: Exception) -> str:
    """An error's line without the path of this machine that it may begin with."""
    line = str(error)
    head, colon, rest = line.partition(": ")
    return rest if colon and head.startswith("/") else line


def value_address(id: str, modality: str) -> str:
    """The address of an item's value on this server."""
    return f"/items/{quote(id, safe='')}/value/{modality}"


def no_item(id: str) -> RequestError:
    """404: the collection has no such item."""
    return RequestError(404, "no_item", f"no item {id[:200]!r}")


def not_live() -> RequestError:
    """503: no version has been promoted yet."""
    return RequestError(503, "not_live", "no version is live yet; `mmtune index promote` makes one")
