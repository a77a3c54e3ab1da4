"""Add, list, rotate and remove the tokens of a token file. Running servers notice the change at the next request."""

import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mmtune.errors import DataError
from mmtune.runtime.files import write_json
from mmtune.runtime.work_lock import file_lock
from mmtune.serve.token_file import FORMAT, PREFIX, ROLES, TokenEntry, hash_secret, read_entries


@dataclass(frozen=True)
class NewToken:
    """A token that was made. token: the only copy of it; the file has its hash."""

    id: str
    name: str
    role: str
    token: str
    expires: str | None


def add_token(path: str | Path, name: str, role: str, days: float | None = None) -> NewToken:
    """Add a token to the file, which is created if necessary, readable by its owner only.

    name: for logs and for `remove_token`; must be new
    role: one of ROLES
    days: the token expires after this many days; None means never
    """
    if role not in ROLES:
        raise DataError(f"--role {role}: the roles are {', '.join(ROLES)}")
    if not name.strip() or not name.isprintable() or len(name) > 100:
        raise DataError("--name: must consist of 1 to 100 printable characters")
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(file.with_name(f".{file.name}.lock")):
        entries = read_entries(file) if file.exists() else []
        if any(e.name == name for e in entries):
            raise DataError(
                f"{file}: there is a token {name!r} already; choose another name, or `mmtune serve token rotate {name}`"
            )
        entry, token = _new_entry(name, role, days)
        _write(file, [*entries, entry])
    return NewToken(entry.id, name, role, token, entry.expires)


@dataclass(frozen=True)
class ListedToken:
    """A token of the file, without its hash."""

    id: str
    name: str
    role: str
    created: str
    expires: str | None
    expired: bool


def list_tokens(path: str | Path) -> list[ListedToken]:
    """Return the tokens of a file, oldest first."""
    entries = read_entries(_existing(path))
    return [ListedToken(e.id, e.name, e.role, e.created, e.expires, e.expired) for e in entries]


def rotate_token(path: str | Path, name: str, overlap_hours: float = 24.0) -> NewToken:
    """Replace a token by a new one of the same name and role. The old one stays valid for `overlap_hours`."""
    file = _existing(path)
    with file_lock(file.with_name(f".{file.name}.lock")):
        entries = [e for e in read_entries(file) if not e.expired]
        old = _named(file, entries, name)
        end = datetime.now(UTC) + timedelta(hours=overlap_hours)
        kept = [_ending(e, end) if e.name == name else e for e in entries]
        entry, token = _new_entry(name, old.role, None)
        if old.expires is not None:  # the new token lives as long as the old one was to live
            lifetime = datetime.fromisoformat(old.expires) - datetime.fromisoformat(old.created)
            entry = replace(entry, expires=(datetime.now(UTC) + lifetime).isoformat(timespec="seconds"))
        _write(file, [*kept, entry])
    return NewToken(entry.id, name, entry.role, token, entry.expires)


def remove_token(path: str | Path, name: str) -> int:
    """Remove all tokens of a name, or the token with this id; returns their number. Raises DataError if there is none."""
    file = _existing(path)
    with file_lock(file.with_name(f".{file.name}.lock")):
        entries = read_entries(file)
        _named(file, entries, name)
        kept = [e for e in entries if name not in (e.name, e.id)]
        _write(file, kept)
    return len(entries) - len(kept)


def _existing(path: str | Path) -> Path:
    """Return the path of a token file. Raises DataError if it does not exist."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; create it with `mmtune serve token add --file {path} --name NAME`")
    return Path(path)


def _named(file: Path, entries: Sequence[TokenEntry], name: str) -> TokenEntry:
    found = [e for e in entries if name in (e.name, e.id)]
    if not found:
        known = ", ".join(dict.fromkeys(e.name for e in entries)) or "none"
        raise DataError(f"{file}: no token {name!r}; its tokens: {known}")
    return found[-1]


def _ending(entry: TokenEntry, end: datetime) -> TokenEntry:
    if entry.expires is not None:
        end = min(end, datetime.fromisoformat(entry.expires))
    return replace(entry, expires=end.isoformat(timespec="seconds"))


def _new_entry(name: str, role: str, days: float | None) -> tuple[TokenEntry, str]:
    id, secret, salt, now = secrets.token_hex(6), secrets.token_hex(32), secrets.token_hex(16), datetime.now(UTC)
    expires = None if days is None else (now + timedelta(days=days)).isoformat(timespec="seconds")
    entry = TokenEntry(id, name, role, salt, hash_secret(salt, secret), now.isoformat(timespec="seconds"), expires)
    return entry, f"{PREFIX}_{id}_{secret}"


def _write(file: Path, entries: Sequence[TokenEntry]) -> None:
    """Replace the file atomically. It keeps its permissions; a new file is readable by its owner only."""
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o600
    temporary = os.umask(0o077)
    try:
        write_json(file, {"format": FORMAT, "tokens": [asdict(e) for e in entries]})
    finally:
        os.umask(temporary)
    os.chmod(file, mode)
