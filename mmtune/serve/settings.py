"""Settings of the server, and limits on requests."""

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.errors import DataError

if TYPE_CHECKING:
    from mmtune.index.query.rerank import Rerank

Number = int | float


def value_limits() -> dict[str, Number]:
    """Return {option: limit} for values in requests, from all modalities.

    If several modalities have an option of the same name, the largest limit is used.
    """
    limits: dict[str, Number] = {}
    for name in modalities.names():
        for option, default in modalities.get(name).request_limits.items():
            limits[option] = max(limits.get(option, default), default)
    return limits


@dataclass(frozen=True)
class Limits:
    """Limits on one request.

    A request over a limit gets status 413 (bytes), 422 (k, filter, value), 429 (concurrency) or 408 (time).
    """

    max_bytes: int = 20_000_000
    """Maximum bytes of a request body."""
    max_k: int = 100
    """Maximum number of results of a search."""
    max_filter: int = 1000
    """Maximum number of characters of a filter."""
    max_concurrent: int = 64
    """Maximum number of searches and writes in progress at once."""
    max_decoded: int = 2**31
    """Maximum bytes of memory for all values that are being decoded. Requests wait until there is enough."""
    body_seconds: float = 30.0
    """Seconds within which the whole body must arrive."""
    values: dict[str, Number] = field(default_factory=value_limits)
    """Limits on values, by the names of the modalities' options."""


@dataclass(frozen=True)
class Settings:
    """Settings of the server. Raises DataError if other machines can reach the address and there is no token.

    token: see `mmtune.serve.auth`
    window: seconds that a search may wait for other searches to share its forward pass
    batch: maximum number of queries in a forward pass
    page: whether to serve the search page
    watch: seconds between checks for a new live or staged version
    grace: seconds that a stopping server waits for requests in progress
    rerank: how the results of every search are re-ranked
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    limits: Limits = field(default_factory=Limits)
    window: float = 0.004
    batch: int = 32
    page: bool = True
    watch: float = 1.0
    grace: float = 10.0
    rerank: "Rerank | None" = None

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token.strip() or not self.token.isascii() or not self.token.isprintable()):
            raise DataError("--token: must consist of printable ASCII characters, and not be blank")
        if not self.loopback and self.token is None:
            raise DataError(
                f"--host {self.host} can be reached from other machines, so a token is needed: give --token (or set "
                "MMTUNE_TOKEN), which every request must then contain, or use 127.0.0.1"
            )

    @property
    def loopback(self) -> bool:
        """Whether the server can only be reached from its own machine."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
