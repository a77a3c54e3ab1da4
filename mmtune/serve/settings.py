"""What a server may be told, with the defaults of a careful one."""

import ipaddress
from dataclasses import dataclass, field
from typing import Any

from mmtune import modalities
from mmtune.errors import DataError


def value_limits() -> dict[str, Any]:
    """Every modality's limits for what arrives over the network, by name; the widest default where several have one."""
    found: dict[str, Any] = {}
    for name in modalities.names():
        for option, default in modalities.get(name).request_limits.items():
            found[option] = max(found.get(option, default), default)
    return found


@dataclass(frozen=True)
class Limits:
    """What one caller may ask for; over it 413 (bytes), 422 (k, a filter, a value), 429 (too many at once), 408 (too slow)."""

    max_bytes: int = 20_000_000
    """Of one request, whatever it carries."""
    max_k: int = 100
    max_filter: int = 1000
    """Characters of a filter."""
    max_concurrent: int = 64
    """Searches and writes that are under way at once."""
    max_decoded: int = 2**31
    """Bytes of memory that values may take decoded, all requests together; who does not fit waits."""
    body_seconds: float = 30.0
    """For the caller to send the whole request."""
    values: dict[str, Any] = field(default_factory=value_limits)
    """Of a value, by the names of the modalities' own options."""


@dataclass(frozen=True)
class Settings:
    """`host`, `port`: where; `token`: see `mmtune.serve.auth`; `window`: seconds that a search may wait for others to share its
    forward pass; `batch`: values a pass; `page`: whether people get a page; `watch`: seconds between looks at who is live;
    `grace`: seconds that a stopping server waits for what is under way."""

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
    """Whether a host's name or address means this machine itself."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
