"""The address of a client, also behind reverse proxies that the operator named, and the key by which it is rate-limited."""

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_networks(values: Sequence[str]) -> tuple[Network, ...]:
    """Parse addresses and networks such as 10.0.0.0/8. Raises ValueError for anything else."""
    return tuple(ipaddress.ip_network(v.strip(), strict=False) for v in values)


def client_address(scope: "Scope", proxies: Sequence[Network] = ()) -> str:
    """Return the address that sent a request.

    A peer outside `proxies` is the client itself, whatever its headers say. If the peer is a trusted proxy, the client is the last
    address of X-Forwarded-For that is not a trusted proxy.
    """
    peer = str((scope.get("client") or ("unknown", 0))[0])
    if not proxies or not _inside(peer, proxies):
        return peer
    forwarded = [v.decode("latin-1") for k, v in scope["headers"] if k == b"x-forwarded-for"]
    for address in reversed([a.strip() for a in ",".join(forwarded).split(",") if a.strip()]):
        if not _is_address(address):
            return peer
        if not _inside(address, proxies):
            return address
    return peer


def limit_key(address: str) -> str:
    """Return the key by which an address is limited: IPv6 clients own a /64, so its addresses share one key."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.ip_network(f"{ip}/64", strict=False))
    return address


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def _inside(address: str, networks: Sequence[Network]) -> bool:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip.version == n.version and ip in n for n in networks)
