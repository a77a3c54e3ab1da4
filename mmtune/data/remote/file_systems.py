"""The file systems of fsspec behind URLs, with the time-outs and repeats of this package in place of their own.

Each of these libraries repeats failed requests itself, some for minutes without a word. Here they make a request once, and `retry`
repeats it.
"""

import logging
import os
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mmtune.data.remote.request_failures import is_missing, public_url
from mmtune.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from aiohttp import ClientTimeout
    from fsspec import AbstractFileSystem

EXTRAS = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""URL scheme -> extra of mmtune that installs the library for it."""
CONNECT_SECONDS, READ_SECONDS = 10, 60
"""Time-outs of HTTP: for a connection, and between two pieces of a response."""
GCS_REQUESTS = ("_request", "_get_file_request", "_get_file_concurrent")
"""The methods of gcsfs's file system that it repeats."""


def file_system(url: str) -> "tuple[AbstractFileSystem, str]":
    """Return the fsspec filesystem and the path of a URL. Raises MissingExtra if its library is not installed."""
    import fsspec

    try:
        scheme = urlsplit(url).scheme
        if scheme in ("http", "https"):
            return fsspec.filesystem("http", client_kwargs={"timeout": _timeout(), "trust_env": True}), url
        if scheme in ("gs", "gcs"):
            return _gcs(url)
        return fsspec.core.url_to_fs(url, **(_s3_options() if scheme in ("s3", "s3a") else {}))
    except ImportError as e:
        raise missing_library(url, e) from None
    except ValueError as e:
        raise DataError(f"{public_url(url)}: cannot be read ({e})") from None


def missing_library(url: str, error: ImportError) -> MissingExtra:
    """The error for a library that is not installed."""
    scheme = urlsplit(url).scheme
    extra = EXTRAS.get(scheme)
    fix = f'pip install "mmtune[{extra}]"' if extra else str(error)
    return MissingExtra(f"{public_url(url)}: {scheme}:// URLs need a library that is not installed: {fix}")


def _timeout() -> "ClientTimeout":
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)


def _s3_options() -> dict[str, Any]:
    """Options of s3fs by which a request is made once, unless the user has set a number."""
    import fsspec

    config = dict(fsspec.config.conf.get("s3", {}).get("config_kwargs", {}))
    if "retries" not in config and "AWS_MAX_ATTEMPTS" not in os.environ:
        config["retries"] = {"total_max_attempts": 1}
    return {"config_kwargs": config}


def _gcs(url: str) -> "tuple[AbstractFileSystem, str]":
    import fsspec

    options = {**fsspec.config.conf.get("gcs", {}), **fsspec.config.conf.get("gs", {})}
    at_google = not options.get("endpoint_url") and os.environ.get("STORAGE_EMULATOR_HOST", "") in ("", "default")
    kind = _gcs_class(at_google)
    timeout = {} if "requests_timeout" in options else {"requests_timeout": _timeout()}
    return kind(**kind._get_kwargs_from_urls(url), **timeout), kind._strip_protocol(url)


@cache
def _gcs_class(at_google: bool) -> Any:
    """gcsfs's file system, with requests that are made once.

    at_google: whether the server may be asked over gRPC for the type of a bucket, as gcsfs does since 2026. Servers of the JSON API
    alone do not speak it, and gcsfs takes a minute for each request to find that out.
    """
    import gcsfs
    from gcsfs.core import GCSFileSystem

    logging.getLogger("gcsfs").addHandler(
        logging.NullHandler()
    )  # else its warnings and tracebacks are printed; `retry` reports
    methods: dict[str, Any] = {name: getattr(GCSFileSystem, name, None) for name in GCS_REQUESTS}
    once = {name: method.__wrapped__ for name, method in methods.items() if hasattr(method, "__wrapped__")}
    plain: Any = type("GCSFileSystem", (GCSFileSystem,), once)
    extended = gcsfs.GCSFileSystem
    return type("GCSFileSystem", (extended, plain), {}) if at_google and extended is not GCSFileSystem else plain


def bucket_is_missing(url: str) -> bool:
    """Whether a URL of S3 or GCS names a bucket that the server does not have, as far as it says so."""
    if urlsplit(url).scheme not in ("s3", "s3a", "gs", "gcs"):
        return False
    fs, path = file_system(url)
    bucket = path.partition("/")[0]
    try:
        fs.info(bucket) if urlsplit(url).scheme.startswith("s3") else fs.call("GET", f"b/{bucket}")
    except Exception as e:  # the libraries behind fsspec raise all kinds of exceptions
        return is_missing(e)
    return False
