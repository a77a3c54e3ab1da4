"""Clients of Qdrant servers and of the client's local mode, shared by the stores of a process, and the options in their URL."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mmtune.errors import DataError, MissingExtra, StoreUnavailable
from mmtune.index.stores.url_options import split_options

if TYPE_CHECKING:
    from qdrant_client import QdrantClient


@dataclass(frozen=True, slots=True)
class QdrantOptions:
    """The url of a Qdrant, and the options of mmtune in it: `http://host:6333?mmtune_alias=items&mmtune_vector=photo`.

    url: URL of the server, or directory, without the options.
    vector: name of the vectors (Qdrant's named vectors); None means the unnamed vector.
    alias: alias that points at the Qdrant collection of the live version, for other clients of the server.
    """

    url: str
    vector: str | None = None
    alias: str | None = None


def parse_options(url: str) -> QdrantOptions:
    """Split a url into Qdrant's part and mmtune's options. Raises DataError for an unknown or empty option."""
    rest, found = split_options(url, ("vector", "alias"), "qdrant")
    for name, value in found.items():
        if not value.strip():
            raise DataError(f"store qdrant: mmtune_{name} is empty in the url; name the {name}, or leave the option out")
    return QdrantOptions(rest, found.get("vector"), found.get("alias"))


def qdrant_module() -> ModuleType:
    """Import qdrant-client. Raises MissingExtra."""
    try:
        import qdrant_client
        import qdrant_client.http.exceptions
    except ImportError:
        raise MissingExtra('store qdrant needs qdrant-client: pip install "mmtune[qdrant]"') from None
    return qdrant_client


def server_client(url: str) -> "QdrantClient":
    """Return a client of a Qdrant server, with the API key of the environment variable QDRANT_API_KEY. Raises MissingExtra."""
    key = os.environ.get("QDRANT_API_KEY")
    return qdrant_module().QdrantClient(url=url, api_key=key, timeout=60, check_compatibility=False)


class SharedClient:
    """One client per server or directory, shared by all stores of this process, because local mode locks its directory."""

    _open: dict[str, "SharedClient"] = {}
    _guard = threading.Lock()

    def __init__(self, where: str):
        self.where, self.users, self.local = where, 0, not where.startswith(("http://", "https://"))
        self._lock: contextlib.AbstractContextManager[object] = threading.RLock() if self.local else contextlib.nullcontext()
        try:
            if self.local:
                _remove_empty_contents(Path(where))
                self._client = qdrant_module().QdrantClient(path=where, force_disable_check_same_thread=True)
            else:
                self._client = server_client(where)
        except RuntimeError as e:
            if "already accessed" not in str(e):
                raise
            raise DataError(
                f"{where}: open in another process, and Qdrant's local mode allows only one; run a Qdrant server and build with "
                "--url http://..."
            ) from None

    @classmethod
    def acquire(cls, where: str) -> "SharedClient":
        """Return the shared client of a server or directory; create it when this process has none."""
        with cls._guard:
            if where not in cls._open:
                cls._open[where] = cls(where)
            cls._open[where].users += 1
            return cls._open[where]

    def release(self) -> None:
        """Close the client when its last user releases it."""
        with self._guard:
            self.users -= 1
            if self.users == 0:
                self._client.close()
                del self._open[self.where]

    @contextlib.contextmanager
    def use(self, label: str) -> "Iterator[QdrantClient]":
        """Yields the client for one call. Raises DataError, in one line, for an error of the connection or the server."""
        exceptions = qdrant_module().http.exceptions
        with self._lock, warnings.catch_warnings():
            if self.local:
                warnings.simplefilter("ignore", UserWarning)  # about many points, and about payload indexes it cannot create
            try:
                yield self._client
            except (exceptions.ResponseHandlingException, exceptions.UnexpectedResponse) as e:
                status = getattr(e, "status_code", None)
                kind = DataError if status is not None and status < 500 else StoreUnavailable
                raise kind(f"{label}: {(str(e).strip().splitlines() or ['no answer from the server'])[0]}") from None

    @contextlib.contextmanager
    def batch(self, name: str, vacuum: bool = False) -> Iterator[None]:
        """Context manager for a write of many points: in local mode, the file is synced once at the end, not per point.

        vacuum: rewrite the file without free pages at the end.
        """
        collections = getattr(getattr(self._client, "_client", None), "collections", {})
        file = getattr(getattr(collections.get(name), "storage", None), "storage", None) if self.local else None
        if file is not None:
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("PRAGMA synchronous=NORMAL")
        yield
        if file is not None:
            if vacuum:
                file.commit()
                file.execute("VACUUM")
            file.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if vacuum else 'FULL'})")


def _remove_empty_contents(directory: Path) -> None:
    """Remove an empty meta.json: a process killed while it created the directory leaves one, and the client cannot read it."""
    contents = directory / "meta.json"
    if contents.is_file() and not contents.stat().st_size and not (directory / "collection").exists():
        contents.unlink()
