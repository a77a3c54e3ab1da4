"""Roles, and a file of tokens that the server reads again when it changes.

The file holds no token, only salted SHA-256 hashes. A token has 256 random bits, so that a slow hash is not needed: `mmt_` + the
entry's id + `_` + the secret. Entries are managed with `mmtune serve token` (see `mmtune.serve.token_admin`).
"""

import hashlib
import hmac
import logging
import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from mmtune.errors import DataError
from mmtune.runtime.files import read_json
from mmtune.runtime.format_number import check_format

log = logging.getLogger("mmtune.serve")
ROLES = ("search", "feedback", "write", "admin")
"""Each role includes those before it. search: searches and items; feedback: clicks and judgments; write: changes of items;
admin: /shadow."""
PREFIX = "mmt"
FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """Who sent a request.

    name: name of the token; "local" without a token on this machine, "token" for the token of --token
    role: one of ROLES
    id, hash: of the token's entry; empty without a token
    """

    name: str
    role: str
    id: str = ""
    hash: str = ""

    def may(self, role: str) -> bool:
        """Whether this identity has a role."""
        return ROLES.index(self.role) >= ROLES.index(role)


@dataclass(frozen=True)
class TokenEntry:
    """One token in the file. expires: time in ISO 8601, or None. hash: hexadecimal SHA-256 of salt + secret."""

    id: str
    name: str
    role: str
    salt: str
    hash: str
    created: str
    expires: str | None = None

    @property
    def expired(self) -> bool:
        """Whether the token's time is over."""
        return self.expires is not None and datetime.fromisoformat(self.expires) <= datetime.now(UTC)

    @property
    def identity(self) -> Identity:
        """The identity of requests with this token."""
        return Identity(self.name, self.role, self.id, self.hash)


def hash_secret(salt: str, secret: str) -> str:
    """Return the salted SHA-256 hash of a token's secret, in hexadecimal."""
    return hashlib.sha256(bytes.fromhex(salt) + secret.encode("utf-8", "replace")).hexdigest()


def read_entries(path: Path) -> list[TokenEntry]:
    """Read a token file. Raises DataError, naming the file and the entry, if it is missing or damaged."""
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("tokens"), list):
        raise DataError(f"{path}: not a token file; create one with `mmtune serve token add --file {path} --name NAME`")
    check_format(document.get("format"), FORMAT, path, DataError)
    entries: list[TokenEntry] = []
    for number, fields in enumerate(document["tokens"], 1):
        try:
            entry = TokenEntry(**fields)
            bytes.fromhex(entry.salt), bytes.fromhex(entry.hash)
            if entry.expires is not None and datetime.fromisoformat(entry.expires).tzinfo is None:
                raise ValueError("expires has no time zone")
        except (TypeError, ValueError) as e:
            raise DataError(f"{path}: token {number} is damaged: {e}") from None
        if entry.role not in ROLES:
            raise DataError(f"{path}: token {number}: unknown role {str(entry.role)[:40]!r}; the roles are {', '.join(ROLES)}")
        entries.append(entry)
    return entries


@dataclass
class TokenFile:
    """The tokens of a file. `verify` reads the file again when it has changed.

    If the file is missing or damaged, no token is valid until it is repaired: a token that was removed must not come back.
    """

    path: Path
    _stamp: tuple[int, int, int] | None = None
    _entries: dict[str, TokenEntry] = field(default_factory=dict)
    _reported: str = ""
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def entries(self) -> dict[str, TokenEntry]:
        """Return {id: entry} of the file as it is now."""
        with self._guard:
            try:
                found = os.stat(self.path)
                stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
                if stamp != self._stamp:
                    self._entries = {e.id: e for e in read_entries(self.path)}
                    if self._stamp is not None or self._reported:
                        log.warning("the token file was read again: %d tokens", len(self._entries))
                    self._stamp, self._reported = stamp, ""
            except (DataError, OSError) as e:
                self._stamp, self._entries = None, {}
                if self._reported != str(e):
                    log.error("no token of the token file is valid: %s", e)
                    self._reported = str(e)
            return self._entries

    def verify(self, token: str) -> Identity | None:
        """Return the identity of a token; None if it is unknown or expired. Takes as long for an unknown id as for a known one."""
        prefix, _, rest = token.partition("_")
        id, _, secret = rest.partition("_")
        entry = self.entries().get(id)
        salt, expected = (entry.salt, entry.hash) if entry else ("00" * 16, "00" * 32)
        equal = hmac.compare_digest(hash_secret(salt, secret), expected)
        return entry.identity if entry is not None and equal and prefix == PREFIX and not entry.expired else None

    def identity(self, id: str) -> Identity | None:
        """Return the identity of an entry that is still in the file and has not expired."""
        entry = self.entries().get(id)
        return entry.identity if entry is not None and not entry.expired else None
