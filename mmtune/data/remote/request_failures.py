"""Why a request to a server failed: whether it may succeed when it is repeated, and what to tell the user in one line.

The libraries behind fsspec raise exceptions of their own for the same thing, so they are recognised by status, number, type and
name along the chain of their causes. Messages contain no credentials: user names, passwords and query strings (signatures) of a URL
are left out.
"""

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Iterator
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from mmtune.errors import DataError, MissingExtra, first_line

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
DENIED_FIXES = {
    "s3": "check the AWS credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) and what the bucket permits them",
    "gs": f"{NO_CREDENTIALS['google']}; for a public bucket FSSPEC_GS_TOKEN=anon",
    "hf": NO_CREDENTIALS["huggingface_hub"],
}
"""URL scheme -> what to do if a file must not be read."""
URL = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>]+", re.I)
CONNECT_TIMEOUTS = {"ConnectionTimeoutError", "ConnectTimeoutError", "ConnectTimeout"}
"""Types of errors of aiohttp, botocore, httpx and requests for a connection that is not made in time."""
NO_ROUTE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN}
TRANSPORT = re.compile(r"(aiohttp|botocore|urllib3|requests|httpx|httpcore)\d?(\.|$)")
"""Modules whose errors are about the transport, if the server has sent no status."""
FOR_GOOD = {"TooManyRedirects", "ParamValidationError", "OfflineModeIsEnabled"}
"""Types of errors of these libraries that stay the same however often the request is repeated."""
TLS_FOR_GOOD = re.compile(r"VERSION|PROTOCOL|ALERT|HTTP_REQUEST")
"""Found in the reasons of errors of TLS that are no broken connection."""


def public_url(url: str) -> str:
    """Return `url` without user name, password, query string and fragment, for messages and file names."""
    if "://" not in url:
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets without an IPv6 address between them
        scheme, _, rest = re.split(r"[?#]", url)[0].partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]}"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(message: str) -> str:
    """Return `message` with `public_url` applied to every URL in it."""
    return URL.sub(lambda match: public_url(match[0]), message)


class Truncated(OSError):
    """A response that ended before all its bytes arrived."""


class GaveUp(Exception):
    """A request failed so often that it is not repeated any more; its cause is the last error.

    attempts, seconds: how often it was made, and how long that took
    """

    def __init__(self, attempts: int, seconds: float):
        super().__init__(f"{attempts} attempt{'s' if attempts > 1 else ''} in {max(1, round(seconds))} s")
        self.attempts, self.seconds = attempts, seconds


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and those that caused it."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__ or seen.__context__


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error of aiohttp, requests, httpx, botocore, gcsfs or huggingface_hub; None if it has none."""
    for e in causes(error):
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
        if type(e) is OSError and str(e).startswith("Forbidden: "):  # gcsfs
            return 403
        if type(e).__name__ == "ProxyError" and not str(e):  # gcsfs
            return 502
    return None


def is_missing(error: BaseException) -> bool:
    """Whether an error says that the file does not exist."""
    status = status_of(error)
    if status:
        return status in MISSING
    # fsspec raises FileNotFoundError also for a server that cannot be reached
    return isinstance(error, FileNotFoundError) and not any(_is_transport(e) for e in causes(error) if e is not error)


def login_hint(error: BaseException) -> str | None:
    """What to do if an error says that there are no valid credentials; None for other errors."""
    for e in causes(error):
        hint = NO_CREDENTIALS.get(type(e).__module__.partition(".")[0])
        if hint and WITHOUT_CREDENTIALS.search(type(e).__name__):
            return hint
    return None


def _is_transport(error: BaseException) -> bool:
    passing = TimeoutError | asyncio.TimeoutError | ConnectionError | EOFError | Truncated | socket.gaierror | ssl.SSLError
    own = type(error).__module__.startswith("gcsfs") and type(error).__name__ == "ChecksumError"
    return own or isinstance(error, passing) or TRANSPORT.match(type(error).__module__) is not None


def is_passing(error: BaseException) -> bool:
    """Whether a request that failed with `error` may succeed when it is repeated."""
    status = status_of(error)
    if status is not None and status >= 400:
        return status >= 500 or status in PASSING_STATUS
    if is_missing(error) or isinstance(error, PermissionError | DataError | MissingExtra | ImportError) or login_hint(error):
        return False
    chain = list(causes(error))
    # the ValueErrors of these libraries are invalid URLs
    if _tls_failure(error) or any(
        type(e).__name__ in FOR_GOOD or (isinstance(e, ValueError) and _is_transport(e)) for e in chain
    ):
        return False
    return any(_is_transport(e) for e in chain)


class Failure(NamedTuple):
    """What is wrong with a server, and what to do about it."""

    what: str
    fix: str


def connection_failure(error: BaseException) -> Failure | None:
    """Why no connection to the server was made; None if there was one."""
    if status_of(error):
        return None
    for e in causes(error):
        number = getattr(e, "errno", None)
        if isinstance(e, socket.gaierror):
            return Failure("its name cannot be resolved", "check the spelling of the address, and the network")
        if isinstance(e, ConnectionRefusedError) or number == errno.ECONNREFUSED:
            return Failure("connection refused", "check the address and the port, and whether the server runs")
        if number in NO_ROUTE:
            return Failure("there is no route to it", "check the address and the network")
        # older versions of aiohttp have one type for all time-outs
        timeout = type(e).__name__ in CONNECT_TIMEOUTS or str(e).startswith("Connection timeout to host")
        if timeout or number == errno.ETIMEDOUT:
            return Failure("no connection in time", "check the address, the network, and the firewall or proxy between")
    return None


def _tls_failure(error: BaseException) -> Failure | None:
    """Why no secure connection can be made, however often it is tried; None for other errors."""
    for e in causes(error):
        if isinstance(e, ssl.SSLCertVerificationError):
            fix = "check the address, or name the certificate of its authority in SSL_CERT_FILE (s3:// in AWS_CA_BUNDLE)"
            # aiohttp's own subclass of it has not its fields
            why = next((v for e in causes(error) if (v := getattr(e, "verify_message", ""))), "it cannot be verified")
            return Failure(f"its certificate is not valid: {why.rstrip('.')}", fix)
        reason = getattr(e, "reason", None) if isinstance(e, ssl.SSLError) and not isinstance(e, ssl.SSLEOFError) else None
        if reason and TLS_FOR_GOOD.search(reason):
            return Failure(f"no TLS connection ({reason})", "check the port, and whether its addresses begin with http://")
    return None


def _server(error: BaseException, url: str) -> str:
    """The server that an error is about, "HOST:PORT"."""
    for e in causes(error):
        if (host := getattr(e, "host", None)) and (port := getattr(e, "port", None)):
            proxy = "proxy " if "Proxy" in type(e).__name__ else ""
            return f"{proxy}{host}" + (f":{port}" if port not in (80, 443) else "")
        request = getattr(e, "_request", None)  # of httpx, whose property `request` may raise
        if (match := URL.search(f"{e} {getattr(request, 'url', '')}")) and match[0].startswith("http"):
            return urlsplit(public_url(match[0])).netloc
    return urlsplit(public_url(url)).netloc if url.startswith("http") else ""


def is_about_server(error: BaseException) -> bool:
    """Whether no file of the server can be read, because there is no connection to it."""
    return (connection_failure(error) or _tls_failure(error)) is not None


def describe(error: BaseException, url: str, file: str = "") -> str:
    """Describe in a few words why a request failed, and what to do.

    url: what was requested
    file: its name, if the message is about another one
    """
    status, scheme = status_of(error), urlsplit(url).scheme
    if is_missing(error):
        return f"no such file or directory{f' (HTTP {status})' if status else ''}"
    if hint := login_hint(error):
        return f"no valid credentials ({type(error).__name__}); {hint}"
    if status in DENIED or isinstance(error, PermissionError):
        fix = DENIED_FIXES.get({"s3a": "s3", "gcs": "gs"}.get(scheme, scheme), "check the credentials, or sign the URL again")
        return f"access denied{f' (HTTP {status})' if status else ''}; {fix}"
    tried = f", after {error}" if isinstance(error, GaveUp) else ""
    if failure := connection_failure(error) or _tls_failure(error):
        return f"the server {_server(error, url)} cannot be reached: {failure.what}{tried}; {failure.fix}".replace("  ", " ")
    return f"cannot be read ({_reason(error, file)}{tried})"


def _reason(error: BaseException, file: str) -> str:
    """Why a file cannot be read, in plain words for what is common."""
    if status := status_of(error):
        return f"HTTP {status}{f' for {file}' if file else ''}"
    chain = [e for e in causes(error) if not isinstance(e, GaveUp)]
    if any(type(e).__name__ == "TooManyRedirects" for e in chain):
        return "the server redirects without end"
    for e in chain:
        if type(e).__name__ == "ParamValidationError":  # of botocore, with a headline of its own
            return str(e).partition("\n")[2].partition(":")[0].strip() or first_line(e)
    if any(isinstance(e, ValueError) and _is_transport(e) for e in chain):
        return "not a valid address"
    if isinstance(chain[0], ValueError):
        return without_secrets(first_line(chain[0])[:200])
    if any(isinstance(e, Truncated) for e in chain):
        return first_line(next(e for e in chain if isinstance(e, Truncated)))
    if type(chain[0]).__name__ == "OfflineModeIsEnabled":
        return first_line(chain[0])
    if any(isinstance(e, TimeoutError | asyncio.TimeoutError) for e in chain):
        return "the server does not answer in time"
    if any(isinstance(e, ConnectionError | EOFError) or "Disconnected" in type(e).__name__ for e in chain):
        return "the connection broke off"
    return without_secrets(f"{type(chain[0]).__name__}: {first_line(chain[0])}"[:200])
