"""Repeat requests to a server that failed for a passing reason, with exponential back-off and jitter.

Passing reasons are the HTTP status 408, 425, 429 and 5xx, time-outs and broken connections. All other errors, e.g. 404 or 403, are
raised at once. Messages contain no credentials: user names, passwords and query strings (signatures) of a URL are left out.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from mmtune.errors import DataError

T = TypeVar("T")

ATTEMPTS = 7
"""Number of times that a request is made before its error is raised."""
FIRST_DELAY = 0.5
"""Seconds before the second attempt. Each further delay is twice as long."""
MAX_DELAY = 20.0
"""Longest delay between two attempts, in seconds; also the longest delay that a server can request by Retry-After."""
PASSING_STATUS = {408, 425, 429}
DENIED = {401, 403}
MISSING = {404, 410}
NO_CREDENTIALS = {
    "botocore": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket FSSPEC_S3_ANON=true",
    "google": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS",
    "huggingface_hub": "set HF_TOKEN, or run `hf auth login`",
}
"""Package whose error says that there are no valid credentials -> what to do."""
WITHOUT_CREDENTIALS = re.compile(r"Credential|ProfileNotFound|SSOToken|TokenRetrieval|RefreshError|TokenNotFound")
"""Found in the names of such errors."""
URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.I)


def public_url(url: str) -> str:
    """Return `url` without user name, password, query string and fragment, for messages and file names."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(message: str) -> str:
    """Return `message` with `public_url` applied to every URL in it."""
    return URL.sub(lambda match: public_url(match[0]), message)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that caused it."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of aiohttp, requests, httpx, botocore, gcsfs or huggingface_hub; None if it has none."""
    for e in _chain(error):
        response = getattr(e, "response", None)
        if isinstance(response, dict):  # botocore
            response = response.get("ResponseMetadata", {})
            code: object = response.get("HTTPStatusCode")
        else:
            code = getattr(response, "status_code", None)
        # aiohttp's errors about broken answers have a `code`, too, which no server sent
        own = getattr(e, "code", None) if type(e).__module__.startswith("gcsfs") else getattr(e, "status", None)
        for value in (code, own):
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None


def is_missing(error: BaseException) -> bool:
    """Whether an error says that the file does not exist."""
    status = status_of(error)
    return status in MISSING if status else isinstance(error, FileNotFoundError)


def login_hint(error: BaseException) -> str | None:
    """What to do if an error says that there are no valid credentials; None for other errors."""
    for e in _chain(error):
        hint = NO_CREDENTIALS.get(type(e).__module__.partition(".")[0])
        if hint and WITHOUT_CREDENTIALS.search(type(e).__name__):
            return hint
    return None


def is_passing(error: BaseException) -> bool:
    """Whether a request that failed with `error` may succeed when it is repeated."""
    status = status_of(error)
    if status is not None and status >= 400:
        return status >= 500 or status in PASSING_STATUS
    if isinstance(error, FileNotFoundError | PermissionError | DataError | ImportError) or login_hint(error):
        return False
    return any(
        isinstance(e, TimeoutError | asyncio.TimeoutError | ConnectionError | EOFError | Truncated)
        or type(e).__module__.partition(".")[0] in ("aiohttp", "botocore", "urllib3", "httpx", "httpcore")
        for e in _chain(error)
    )


class Truncated(OSError):
    """A response that ended before all its bytes arrived."""


def delay_before_next(error: BaseException, attempt: int) -> float:
    """Seconds to wait after the failed attempt number `attempt` (from 0)."""
    longest = min(MAX_DELAY, FIRST_DELAY * 2**attempt)
    seconds = random.uniform(longest / 2, longest)
    for e in _chain(error):
        headers = getattr(e, "headers", None)
        wanted = headers.get("Retry-After", "") if headers is not None and hasattr(headers, "get") else ""
        if str(wanted).isdecimal():
            return min(MAX_DELAY, max(seconds, float(wanted)))
    return seconds


def retry(request: Callable[[], T], attempts: int | None = None) -> T:
    """Return `request()`. If it fails for a passing reason, it is repeated up to `attempts` times (default ATTEMPTS) in total."""
    last = (attempts or ATTEMPTS) - 1
    for attempt in range(last):
        try:
            return request()
        except Exception as e:  # the libraries behind fsspec raise all kinds of exceptions
            if not is_passing(e):
                raise
            time.sleep(delay_before_next(e, attempt))
    return request()


def describe(error: BaseException) -> str:
    """Describe in a few words why a request failed."""
    status = status_of(error)
    if is_missing(error):
        return f"no such file or directory{f' (HTTP {status})' if status else ''}"
    if hint := login_hint(error):
        return f"no valid credentials ({type(error).__name__}); {hint}"
    if status in DENIED or isinstance(error, PermissionError):
        return f"access denied{f' (HTTP {status})' if status else ''}; check the credentials, or sign the URL again"
    repeated = f", after {ATTEMPTS} attempts" if is_passing(error) else ""
    reason = f"HTTP {status}" if status else without_secrets(f"{type(error).__name__}: {error}".splitlines()[0][:200])
    return f"cannot be read ({reason}{repeated})"
