"""Repeat requests to a server that failed for a passing reason, with exponential back-off and jitter.

Passing reasons are the HTTP status 408, 425, 429 and 5xx, time-outs and broken connections. All other errors, e.g. 404 or 403, are
raised at once. A server to which no connection was ever made gets a few attempts only: its address is probably wrong.
"""

import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

from mmtune.data.remote.request_failures import GaveUp, causes, connection_failure, describe, is_passing, public_url, status_of
from mmtune.errors import DataWarning

T = TypeVar("T")

ATTEMPTS = 7
"""Number of times that a request is made before its error is raised."""
FIRST_DELAY = 0.5
"""Seconds before the second attempt. Each further delay is twice as long."""
MAX_DELAY = 20.0
"""Longest delay between two attempts, in seconds; also the longest delay that a server can request by Retry-After."""
FIRST_CONTACT_ATTEMPTS, FIRST_CONTACT_SECONDS = 4, 8.0
"""Attempts to make the first connection to a server, and seconds after which no further one is made."""
WARN_SECONDS = 4.0
"""A request that has no answer for so long is reported, once until the server answers."""


@dataclass
class _Server:
    """What is known about a server: whether it has ever answered, and whether the user knows that it does not answer now."""

    has_answered: bool = False
    is_reported: bool = False


_SERVERS: defaultdict[str, _Server] = defaultdict(_Server)
""""SCHEME://HOST:PORT" or "SCHEME://BUCKET" -> what is known about it in this process."""


class Attempts:
    """The attempts of one request for `url`.

    most: number of attempts (default ATTEMPTS)
    """

    def __init__(self, url: str, most: int | None = None):
        self.url, self.most, self.failed = url, most or ATTEMPTS, 0
        parts = urlsplit(public_url(url))
        self._server, self._begin = _SERVERS[f"{parts.scheme}://{parts.netloc}"], time.monotonic()

    def succeeded(self) -> None:
        """To be called when the server has answered."""
        self._server.has_answered, self._server.is_reported = True, False

    def wait_after(self, error: Exception) -> None:
        """Wait before the next attempt. Raises `error` if it is not passing, and GaveUp if it was the last attempt's.

        Issues a DataWarning if the server does not answer for more than some seconds.
        """
        self.failed += 1
        if status_of(error):
            self._server.has_answered = True
        if not is_passing(error):
            raise error
        seconds = time.monotonic() - self._begin
        first = not self._server.has_answered and connection_failure(error) is not None
        most = min(self.most, FIRST_CONTACT_ATTEMPTS) if first else self.most
        if self.failed >= most or (first and seconds >= FIRST_CONTACT_SECONDS):
            raise GaveUp(self.failed, seconds) from error
        delay = delay_before_next(error, self.failed - 1)
        if seconds + delay > WARN_SECONDS and not self._server.is_reported:
            self._server.is_reported = True
            left = round(delay + sum(_longest_delay(n) for n in range(self.failed, most - 1)))
            why = describe(error, self.url).partition("; ")[0]
            warnings.warn(f"{public_url(self.url)}: {why}; trying again for up to {left} s", DataWarning, stacklevel=2)
        time.sleep(delay)


def _longest_delay(attempt: int) -> float:
    return min(MAX_DELAY, FIRST_DELAY * 2**attempt)


def delay_before_next(error: BaseException, attempt: int) -> float:
    """Seconds to wait after the failed attempt number `attempt` (from 0)."""
    longest = _longest_delay(attempt)
    seconds = random.uniform(longest / 2, longest)
    for e in causes(error):
        headers = getattr(e, "headers", None)
        wanted = headers.get("Retry-After", "") if headers is not None and hasattr(headers, "get") else ""
        if str(wanted).isdecimal():
            return min(MAX_DELAY, max(seconds, float(wanted)))
    return seconds


def retry(request: Callable[[], T], url: str, attempts: int | None = None) -> T:
    """Return `request()`. If it fails for a passing reason, it is repeated up to `attempts` times (default ATTEMPTS) in total.

    url: what is requested

    Raises GaveUp if it fails as often. Other errors are raised as they are.
    """
    made = Attempts(url, attempts)
    while True:
        try:
            result = request()
        except Exception as e:  # the libraries behind fsspec raise all kinds of exceptions
            made.wait_after(e)
        else:
            made.succeeded()
            return result
