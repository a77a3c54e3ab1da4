"""Settings of a server and the limits on a request, with cautious defaults."""

import ipaddress
from dataclasses import dataclass, field

from mmtune import modalities
from mmtune.errors import DataError

Number = int | float


def value_limits() -> dict[str, Number]:
    """The limits of all modalities on values that arrive over the network, by option name; the widest where several have it."""
    limits: dict[str, Number] = {}
    for name in modalities.names():
        for option, default in modalities.get(name).request_limits.items():
            limits[option] = max(limits.get(option, default), default)
    return limits


@dataclass(frozen=True)
class Limits:
    """What one request may contain. Over a limit: 413 (bytes), 422 (k, filter, value), 429 (concurrency), 408 (time)."""

    max_bytes: int = 20_000_000
    """Bytes of a request's body."""
    max_k: int = 100
    """Results of a search."""
    max_filter: int = 1000
    """Characters of a filter."""
    max_concurrent: int = 64
    """Searches and writes that are under way at once."""
    max_decoded: int = 2**31
    """Bytes of memory that all values being decoded may take together; a request over it waits."""
    body_seconds: float = 30.0
    """Seconds in which the whole body has to arrive."""
    values: dict[str, Number] = field(default_factory=value_limits)
    """Limits of a value, by the names of the modalities' options."""


@dataclass(frozen=True)
class Settings:
    """How a server listens and answers. DataError for an address that other machines reach without a token.

    token: see `mmtune.serve.auth`; window: seconds that a search may wait for others to share its forward pass; batch: queries
    a forward pass; page: whether there is a search page; watch: seconds between looks at which version is live; grace: seconds
    that a stopping server waits for requests under way.
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

    def __post_init__(self) -> None:
        if self.token is not None and (not self.token.strip() or not self.token.isascii() or not self.token.isprintable()):
            raise DataError("--token: give printable ASCII characters, or no token")
        if not self.loopback and self.token is None:
            raise DataError(
                f"--host {self.host} is reached from other machines: give --token (or MMTUNE_TOKEN), which every request must "
                "then carry; without one, stay on 127.0.0.1"
            )

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
