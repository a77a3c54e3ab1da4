"""Settings of the server, and limits on requests."""

import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.errors import DataError
from mmtune.serve.client_address import Network, parse_networks

if TYPE_CHECKING:
    from mmtune.index.query.rerank import Rerank

LOG_FORMATS = ("plain", "json")
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
    max_arriving: int = 2**28
    """Maximum bytes of all bodies that are arriving, or whose request is in progress."""
    bodies_per_address: int = 64
    """Maximum number of bodies that may be arriving from one address at once."""
    values: dict[str, Number] = field(default_factory=value_limits)
    """Limits on values, by the names of the modalities' options."""


@dataclass(frozen=True)
class Rates:
    """How many requests one client may send. A request over a limit gets status 429.

    per_token: requests a second with one token; 0 means no limit
    per_address: requests a second from one address; 0 means no limit. Behind a proxy, name it in `trusted_proxies`
    burst: seconds of requests that may come at once after a pause
    failures: wrong tokens a minute from one address, at /login and in headers together
    """

    per_token: float = 500.0
    per_address: float = 500.0
    burst: float = 2.0
    failures: float = 10.0


@dataclass(frozen=True)
class Settings:
    """Settings of the server. Raises DataError if other machines can reach the address and there is no token.

    token: see `mmtune.serve.auth`
    tokens: file of tokens with roles (see `mmtune.serve.token_file`)
    trusted_proxies: addresses or networks of reverse proxies, whose X-Forwarded-For names the client
    window: seconds that a search may wait for other searches to share its forward pass
    batch: maximum number of queries in a forward pass
    page: whether to serve the search page
    watch: seconds between checks for a new live or staged version
    grace: seconds that a stopping server waits for requests in progress
    rerank: how the results of every search are re-ranked
    drain: seconds that a stopping server goes on accepting requests, while /ready says 503, so that a load balancer notices
    log: "plain" or "json": format of the log on standard error
    access_log: whether every request is logged
    traces: whether OpenTelemetry spans are recorded (extra `otel`)
    workers: number of processes
    spool: directory that the processes of one server share, for the contents of recent queries
    history: whether searches are counted in the history of the collection (`mmtune.index.monitoring`)
    probe: seconds between probes of the recall of the live version; 0 means none
    session_key: secret that signs the sessions of the search page; sessions end when it changes
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)
    window: float = 0.004
    batch: int = 32
    page: bool = True
    watch: float = 1.0
    grace: float = 10.0
    rerank: "Rerank | None" = None
    tokens: Path | None = None
    trusted_proxies: tuple[str, ...] = ()
    rates: Rates = field(default_factory=Rates)
    drain: float = 0.0
    log: str = "plain"
    access_log: bool = False
    traces: bool = False
    workers: int = 1
    spool: Path | None = None
    history: bool = True
    probe: float = 3600.0
    session_key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token.strip() or not self.token.isascii() or not self.token.isprintable()):
            raise DataError("--token: must consist of printable ASCII characters, and not be blank")
        if not self.loopback and not self.has_tokens:
            raise DataError(
                f"--host {self.host} can be reached from other machines, so a token is needed: give --token (or set "
                "MMTUNE_TOKEN) or --tokens FILE, which every request must then contain, or use 127.0.0.1"
            )
        try:
            parse_networks(self.trusted_proxies)
        except ValueError as e:
            raise DataError(f"--trusted-proxy: {e}; give addresses or networks, for example 10.0.0.0/8") from None
        if self.log not in LOG_FORMATS:
            raise DataError(f"--log {self.log}: must be one of {', '.join(LOG_FORMATS)}")
        if self.workers < 1:
            raise DataError(f"--workers {self.workers}: must be 1 or more")

    @property
    def has_tokens(self) -> bool:
        """Whether requests need a token."""
        return self.token is not None or self.tokens is not None

    @property
    def proxies(self) -> tuple[Network, ...]:
        """The trusted proxies as networks."""
        return parse_networks(self.trusted_proxies)

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
