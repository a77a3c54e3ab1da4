"""The collection's directory: who is live, which versions there are, and who may write.

    COLL/collection.json      format, name, uid, store
    COLL/live.json            the pointer: one file, replaced in one step; it carries the event that moved it (see journal)
    COLL/models/FINGERPRINT   pinned artifacts          COLL/vectors/FINGERPRINT   vectors by content
    COLL/corpus/              items                     COLL/versions/v1           version.json, canaries, vectors
A version exists when its version.json does: that file is written last.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mmtune.errors import DataError
from mmtune.index.protocols import StoreLocation
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.work_lock import Timeout, file_lock

FORMAT = 1
WAIT = 120.0  # seconds that a writer waits for another one's short step


def now() -> str:
    """The time, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Layout:
    """Paths and small files of one collection. `create` makes an empty one; without it DataError when there is none."""

    def __init__(self, path: str | os.PathLike[str], create: bool = False):
        self.path = Path(path)
        manifest = self.path / "collection.json"
        if not manifest.exists():
            if not create:
                raise DataError(f"{self.path}: not a collection (no collection.json); make one with `mmtune index build`")
            if self.path.exists() and any(p for p in self.path.iterdir() if not p.name.startswith(".")):
                raise DataError(f"{self.path}: not empty and not a collection; give a new directory")
            write_json(manifest, {"format": FORMAT, "name": self.path.name, "uid": uuid.uuid4().hex[:8], "created": now()})
        self.manifest: dict[str, Any] = read_json(manifest)
        if self.manifest.get("format") != FORMAT:
            raise DataError(f"{manifest}: format {self.manifest.get('format')!r}; this mmtune reads {FORMAT}")

    # --- the pointer ---------------------------------------------------------------------------------------------

    def live(self) -> dict[str, Any]:
        """{"version", "previous", "history", "generation", "since", "event"}; version None while nothing is live."""
        try:
            return read_json(self.path / "live.json")
        except DataError:
            if (self.path / "live.json").exists():
                raise
            return {"version": None, "previous": None, "history": [], "generation": 0, "since": None, "event": None}

    def point(self, document: dict[str, Any]) -> None:
        """Replace the pointer: THE atomic step of promote and rollback."""
        write_json(self.path / "live.json", document)

    # --- versions ------------------------------------------------------------------------------------------------

    def directory(self, version: str) -> Path:
        """Where a version lies. DataError for what is no version's name (nothing else may become a path)."""
        if not re.fullmatch(r"v[1-9]\d*", version):
            raise DataError(f"{version!r} is no version; versions are called v1, v2, ...")
        return self.path / "versions" / version

    def versions(self) -> list[str]:
        """Names of the whole versions, oldest first."""
        found = [p.parent.name for p in (self.path / "versions").glob("v*/version.json")]
        return sorted(found, key=lambda v: int(v[1:]))

    def record(self, version: str) -> dict[str, Any]:
        """A version's version.json. DataError naming those there are."""
        path = self.directory(version) / "version.json"
        if not path.exists():
            known = ", ".join(self.versions()) or "none yet"
            raise DataError(f"{self.path}: no version {version!r}; there are: {known}")
        return read_json(path)

    def applied(self, version: str) -> int:
        """The corpus's sequence number that the version's vectors are brought up to."""
        path = self.directory(version) / "applied.json"
        return int(read_json(path)["seq"]) if path.exists() else int(self.record(version)["seq"])

    def set_applied(self, version: str, seq: int) -> None:
        """Publish that number; the vectors are durable before it is."""
        write_json(self.directory(version) / "applied.json", {"seq": seq})

    def place(self, version: str, modality: str, kind: str, url: str | None) -> StoreLocation:
        """Where a store of that version lies. The url `env:NAME` is read from the environment: no file need hold a password."""
        if url and url.startswith("env:"):
            name = url[4:]
            if name not in os.environ:
                raise DataError(f"the collection's store needs the environment variable {name} (the database's URL)")
            url = os.environ[name]
        slug = re.sub(r"[^a-z0-9]+", "_", self.manifest["name"].lower()).strip("_")[:24] or "collection"
        name = f"{slug}_{self.manifest['uid']}_{version}_{modality}"[:60]
        return StoreLocation(kind, self.directory(version) / modality, url, name)

    # --- writers -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str = "write", wait: float = WAIT) -> Iterator[None]:
        """One holder at a time, over threads and processes; a killed one's lock is free at once. DataError after `wait` s."""
        lock = file_lock(self.path / f".{name}.lock")
        try:
            lock.acquire(timeout=wait, poll_interval=0.01)
        except Timeout:
            raise DataError(f"{self.path}: another {name} is going on in it; wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.release()
