"""Fetch remote files through fsspec: http(s), s3, gs, hf and the other protocols that it supports.

All requests are repeated as `retry` describes. Errors for users are one line that names the public part of the URL.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from mmtune.data.remote.file_systems import bucket_is_missing, file_system, missing_library
from mmtune.data.remote.request_failures import Truncated, describe, is_about_server, is_missing, public_url, status_of
from mmtune.data.remote.retry import retry
from mmtune.errors import DataError, MissingExtra, ServerUnreachable
from mmtune.runtime.files import AtomicFile

FileInfo: TypeAlias = Mapping[str, Any]
"""What fsspec's `info` returns for a file."""

STAMPS = (
    *("ETag", "etag", "e_tag", "VersionId", "version_id", "generation", "md5Hash", "Content-MD5", "content_md5", "checksum"),
    *("sha256", "blob_id", "oid", "LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created"),
)
"""Keys of `FileInfo` that change when the file changes. Servers give some of them."""
SIGNATURES = re.compile(
    r"(^|&)(X-Amz-|X-Goog-|Signature|Expires|AWSAccessKeyId|GoogleAccessId|Policy|Key-Pair-Id|sig|se|sv|token)", re.I
)
"""Keys of a query string that signs a URL."""
STREAMED = {"block_size": 0, "size": 1}
"""Options of fsspec's `open` for HTTP that read a file by a single GET request, without asking for its size first."""


HTML = re.compile(rb"\s*(\xef\xbb\xbf)?\s*<(!doctype\s+html|html)\b", re.I)
"""The beginning of an HTML page."""
HTML_BYTES = 512
"""Number of bytes in which `HTML` is looked for."""


def is_remote(spec: str) -> bool:
    """Whether `spec` is a URL. `file://` URLs count as local."""
    return "://" in spec and not spec.startswith(("file://", "pipe:"))


def cache_identity(url: str) -> str:
    """What identifies the file behind a URL: the URL without credentials, and without its query string if that is a signature."""
    query = urlsplit(url).query
    return public_url(url) + (f"?{query}" if query and not SIGNATURES.search(query) else "")


@contextlib.contextmanager
def one_line_errors(url: str, given: str = "") -> Iterator[None]:
    """Context manager that raises DataError, one line with the public part of `url`, for an error of the libraries behind fsspec.

    given: what the user has named, if that is not `url`; it is named instead

    Raises ServerUnreachable if there is no connection to the server.
    """
    try:
        yield
    except (DataError, MissingExtra):
        raise
    except ImportError as e:
        raise missing_library(url, e) from None
    except Exception as e:
        kind = ServerUnreachable if is_about_server(e) else DataError
        reason = describe(e, url, url.rpartition("/")[2] if given else "")
        if is_missing(e) and bucket_is_missing(url):
            reason = f"no such bucket: {urlsplit(url).netloc}; check its name, and which server is asked"
        raise kind(f"{public_url(given or url)}: {reason}") from None


def file_info(url: str) -> FileInfo:
    """Size, type and stamps of a remote file, as the server gives them. Raises DataError if it does not exist."""
    fs, path = file_system(url)
    with one_line_errors(url):
        return retry(lambda: fs.info(path), url)


def info_if_exists(url: str) -> FileInfo | None:
    """Like `file_info`, but None if the file does not exist or must not be read (see `is_unavailable`)."""
    fs, path = file_system(url)

    def look() -> FileInfo | None:
        try:
            return fs.info(path)
        except Exception as e:
            if is_unavailable(e):
                return None
            raise

    with one_line_errors(url):
        return retry(look, url)


def is_unavailable(error: Exception) -> bool:
    """Whether a file does not exist, or must not be read: servers that hide their listing answer 403 for files that do not exist."""
    return is_missing(error) or status_of(error) in (401, 403) or isinstance(error, PermissionError | IsADirectoryError)


def stamp_of(info: FileInfo) -> str:
    """A string that changes when the file changes: its size and whatever stamps the server gives."""
    found = {"size": info.get("size")}
    for key in STAMPS:
        if (value := info.get(key)) is not None:
            # `fs.ls` may return seconds where `fs.info` returns a datetime
            found[key] = str(value.timestamp() if hasattr(value, "timestamp") else value)
    return json.dumps(found, sort_keys=True)


def is_stamped(info: FileInfo) -> bool:
    """Whether the server gives anything that changes when the file changes, other than its size."""
    return any(info.get(key) is not None for key in STAMPS)


def read_small(url: str, given: str = "", refresh: bool = False) -> bytes | None:
    """Read a whole remote file into memory; None if it does not exist, or if it must not be read (see `is_unavailable`).

    A server that sends an HTML page instead of a file does not have it.
    given: what the user has named, for messages
    refresh: forget the listings of its directory that earlier calls have kept
    """
    fs, path = file_system(url)

    def read() -> bytes | None:
        try:
            if refresh:
                fs.invalidate_cache(path.rpartition("/")[0])
            data: bytes = fs.cat_file(path)
        except Exception as e:
            if is_unavailable(e):
                return None
            raise
        return None if HTML.match(data) else data

    with one_line_errors(url, given):
        return retry(read, given or url)


def refuse_html(url: str, head: bytes, address: Callable[[], str]) -> None:
    """Raise DataError if a file begins like an HTML page: servers redirect to a page on which users log in.

    head: the first bytes of the file
    address: returns the address from which they came; "" if it is unknown
    """
    if not HTML.match(head):
        return
    came_from = public_url(address())
    where = f", from {came_from}" if came_from not in ("", public_url(url)) else ""
    raise DataError(
        f"{public_url(url)}: the server sends an HTML page{where}, not the file; "
        "if it asks for a login, use a signed URL or one with credentials (https://USER:PASSWORD@HOST/...)"
    )


def read_limited(url: str, limit: int) -> bytes:
    """Read at most `limit` + 1 bytes of a remote file. Errors are those of the library behind fsspec."""
    fs, path = file_system(url)

    def read() -> bytes:
        with fs.open(path, "rb", **(STREAMED if path.startswith("http") else {})) as f:
            pieces: list[bytes] = []
            size, expected = 0, _response_size(f)
            while size <= limit and (piece := f.read(min(1 << 20, limit + 1 - size))):
                pieces.append(piece)
                size += len(piece)
            if expected is not None and size < min(expected, limit + 1):
                raise Truncated(f"got {size} of {expected} bytes")
            return b"".join(pieces)

    return retry(read, url)


def _response_size(file: object) -> int | None:
    """The number of bytes that an opened file of fsspec has; None if it is unknown."""
    response = getattr(file, "r", None)
    length = response.headers.get("Content-Length") if response is not None else getattr(file, "size", None)
    encoded = response is not None and response.headers.get("Content-Encoding")
    return int(length) if length is not None and not encoded else None


def download(url: str, local: str | Path, size: int | None) -> None:
    """Copy a remote file to `local`, atomically. Raises DataError if it cannot be read, or has another size than `size`."""
    fs, path = file_system(url)

    def copy() -> None:
        target = AtomicFile(local)
        with target as f:
            name = f.name
            fs.get_file(path, name)
            with open(name, "rb") as written:
                refuse_html(url, written.read(HTML_BYTES), lambda: str(fs.info(path).get("url", "")))
            f.seek(0, os.SEEK_END)
            if size is not None and f.tell() != size:
                raise Truncated(f"got {f.tell()} of {size} bytes")

    with one_line_errors(url):
        retry(copy, url)
