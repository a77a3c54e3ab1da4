"""Convert results and exceptions of the library to JSON bodies and HTTP errors of the REST API."""

import contextlib
import logging
import re
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from mmtune.errors import MissingExtra, MmtuneError, ModelError, StoreUnavailable
from mmtune.runtime.files import is_disk_full
from mmtune.serve.error_responses import RequestError, invalid_error
from mmtune.serve.rate_limit import RateLimiter
from mmtune.serve.schemas import ResultDocument, SearchDocument, VersionDocument, VersionsDocument

if TYPE_CHECKING:
    from mmtune.index.collection_results import SearchResponse
    from mmtune.index.item_catalog import Item
    from mmtune.index.open_version import OpenVersion
    from mmtune.index.query.query import Query
    from mmtune.serve.served_collection import ServedCollection

log = logging.getLogger("mmtune.serve")
CODES = {404: "not_found", 409: "conflict", 422: "invalid", 503: "not_open"}
"""{HTTP status: code of the error}."""
LOG_SECONDS = 5.0
"""The same error is logged once in this time: during an outage, every search would log it."""
_logged = RateLimiter(1 / LOG_SECONDS, 1)


@contextlib.contextmanager
def translate_errors(default_status: int, root: Path) -> Iterator[None]:
    """Context manager that converts the library's errors, and errors of the disk, to RequestErrors, with `request_error`."""
    try:
        yield
    except (MmtuneError, OSError, sqlite3.Error) as e:
        raise request_error(e, default_status, root) from None
    except RecursionError:
        raise RequestError(default_status, CODES[default_status], "a filter or a JSON value is nested too deeply") from None


def request_error(error: MmtuneError | OSError | sqlite3.Error, default_status: int, root: Path) -> RequestError:
    """Convert an error of the library or of the disk to a RequestError.

    The status is 501 for a missing extra, 503 for an index version that could not be loaded, a database that cannot be reached
    and an error of the disk, 507 for a full disk, and `default_status` for all other errors, which the caller has caused. Errors
    that the caller has not caused are logged; their details can contain paths and addresses, and are not in the response.

    root: directory of the collection
    """
    if isinstance(error, MissingExtra):
        return RequestError(501, "missing_extra", str(error))
    if isinstance(error, StoreUnavailable):
        log_error(f"the vector store cannot be reached: {error}")
        return RequestError(503, "store_unavailable", "the vector store cannot be reached; try again in a moment")
    if is_disk_full(error):
        log_error(f"no space left on the disk: {error}")
        return RequestError(507, "disk_full", "the server has no space left on its disk; nothing was changed")
    if isinstance(error, OSError | sqlite3.Error):
        log_error(f"the collection cannot be read or written: {type(error).__name__}: {error}")
        return RequestError(503, "storage", "the collection cannot be read or written; see the server log")
    if isinstance(error, ModelError):
        log_error(str(error))
        return RequestError(503, "not_open", "the index version could not be loaded; see the server log")
    return RequestError(default_status, CODES[default_status], public_message(error, root))


def log_error(line: str) -> None:
    """Log an error, unless the same line was logged in the last LOG_SECONDS."""
    if not _logged.take(line):
        log.error("%s", line)


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


def public_message(error: Exception, root: Path) -> str:
    """Return the error's message without file paths, because paths of the server are not public.

    A path before the message is removed, and `root`, the directory of the collection, wherever it occurs.
    """
    line = str(error)
    for directory in {str(root), str(root.resolve())}:
        line = line.replace(f"{directory}: ", "").replace(directory, root.name)
    head, colon, rest = line.partition(": ")
    return rest if colon and head.startswith("/") else re.sub(r"(?<![\w'\"/])/(?:[^\s/'\":,;]+/)+[^\s'\":,;]*", "[path]", line)


def versions_document(collection: "ServedCollection") -> VersionsDocument:
    """Return the live version and since when it is live, the staged version, and all versions."""
    pointer = collection.layout.live()
    names = ("version", "fingerprint", "dim", "modalities", "items", "created", "behind", "live")
    versions = [
        cast(VersionDocument, {**{k: v[k] for k in names}, "open": v.version in collection.open_versions})
        for v in collection.versions()
    ]
    return {
        "live": pointer["version"],
        "version": pointer["version"],
        "previous": pointer["previous"],
        "since": pointer["since"],
        "generation": pointer["generation"],
        "staged": collection.staged(),
        "versions": versions,
    }


def content_url(id: str, modality: str) -> str:
    """URL of an item's value on this server."""
    return f"/items/{quote(id, safe='')}/value/{modality}"


def item_not_found_error(id: str) -> RequestError:
    """Create the 404 error for an item that the collection does not contain."""
    return RequestError(404, "no_item", f"there is no item {id[:200]!r}")


def unanswerable_error(opened: "OpenVersion", query: "Query", known: "Mapping[str, Item]") -> RequestError | None:
    """Create the error for a query that a version cannot answer, or return None.

    known: the query items that exist
    """
    if query.item is not None:
        return None if query.item in known else item_not_found_error(query.item)
    if query.modality not in opened.model.towers:
        able = ", ".join([*opened.model.towers, "item"])
        return invalid_error(f"version {opened.version} accepts no {query.modality} queries; it accepts {able}")
    return None


def no_live_version_error() -> RequestError:
    """Create the 503 error for a collection without a live version."""
    return RequestError(503, "not_live", "no version is live yet; promote one with `mmtune index promote`")
