"""The files of a collection: the live pointer, the versions' records, and the lock that writers take.

    COLL/collection.json      format, name, uid
    COLL/live.json            the live pointer: one file, replaced in one step; it carries the audit event of its last move
    COLL/models/FINGERPRINT   pinned artifacts          COLL/vectors/FINGERPRINT   vectors by content
    COLL/corpus/              the catalog of items      COLL/versions/v1           version.json, canaries, stores
A version exists when its version.json does: that file is written last.
"""

import contextlib
import os
import re
import uuid
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict, TypeVar

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.stores.store_protocol import StoreLocation
from mmtune.runtime.files import read_json, write_json
from mmtune.runtime.work_lock import Timeout, file_lock

T = TypeVar("T")
FORMAT = 1
LOCK_SECONDS = 120.0
"""How long a writer waits for another writer's short critical section."""


class CollectionManifest(TypedDict):
    """collection.json. uid: makes table names of two collections in one database differ."""

    format: int
    name: str
    uid: str
    created: str


class LivePointer(TypedDict):
    """live.json. generation: counts the moves; history: versions that were live before, oldest first; event: of the last
    move."""

    version: str | None
    previous: str | None
    history: list[str]
    generation: int
    since: str | None
    event: JsonObject | None


class StoreConfig(TypedDict):
    """Where a version's vectors are stored: a kind of store, and its URL as it was given (which may be `env:NAME`)."""

    kind: str
    url: str | None


class VersionRecord(TypedDict):
    """version.json. seq: the catalog's sequence number when it was built; identity: of the pinned model (`pinned_model`)."""

    version: str
    fingerprint: str
    dim: int
    modalities: list[str]
    store: StoreConfig
    index: dict[str, dict[str, object]]
    seq: int
    created: str
    model: str
    prompts: JsonObject
    identity: dict[str, dict[str, str]]
    items: NotRequired[int]
    vectors: NotRequired[dict[str, int]]
    event: NotRequired[JsonObject]


NOTHING_LIVE: LivePointer = {
    "version": None,
    "previous": None,
    "history": [],
    "generation": 0,
    "since": None,
    "event": None,
}


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _complete(path: Path, document: T, keys: Collection[str]) -> T:
    """The document of a file. DataError when it is no mapping with these keys."""
    missing = sorted(keys) if not isinstance(document, dict) else sorted(set(keys) - set(document))
    if missing:
        raise DataError(f"{path}: damaged: it lacks {', '.join(missing)}; restore it from a backup")
    return document


class CollectionLayout:
    """Paths and small files of one collection. `create` makes an empty collection where there is none; else DataError."""

    def __init__(self, path: str | os.PathLike[str], create: bool = False):
        self.path = Path(path)
        manifest = self.path / "collection.json"
        if not manifest.exists():
            if not create:
                raise DataError(f"{self.path}: not a collection (no collection.json); make one with `mmtune index build`")
            if self.path.exists() and any(p for p in self.path.iterdir() if not p.name.startswith(".")):
                raise DataError(f"{self.path}: not empty and not a collection; give a new directory")
            write_json(manifest, {"format": FORMAT, "name": self.path.name, "uid": uuid.uuid4().hex[:8], "created": now()})
        self.manifest: CollectionManifest = read_json(manifest)
        if self.manifest.get("format") != FORMAT:
            raise DataError(f"{manifest}: format {self.manifest.get('format')!r}; this mmtune reads {FORMAT}")

    # --- the live pointer ----------------------------------------------------------------------------------------

    def live(self) -> LivePointer:
        """The pointer; its version is None while nothing is live."""
        path = self.path / "live.json"
        try:
            return _complete(path, read_json(path), LivePointer.__required_keys__)
        except DataError:
            if path.exists():
                raise
            return NOTHING_LIVE

    def set_live(self, pointer: LivePointer) -> None:
        """Replace the pointer: THE atomic step of promote and rollback."""
        write_json(self.path / "live.json", pointer)

    # --- versions ------------------------------------------------------------------------------------------------

    def directory(self, version: str) -> Path:
        """The directory of a version. DataError for a name that is not v1, v2, ...: nothing else may become a path."""
        if not re.fullmatch(r"v[1-9]\d*", version):
            raise DataError(f"{version!r} is no version; versions are called v1, v2, ...")
        return self.path / "versions" / version

    def versions(self) -> list[str]:
        """Names of the complete versions, oldest first."""
        names = [p.parent.name for p in (self.path / "versions").glob("v*/version.json")]
        return sorted(names, key=lambda v: int(v[1:]))

    def record(self, version: str) -> VersionRecord:
        """A version's version.json. DataError naming the versions that exist."""
        path = self.directory(version) / "version.json"
        if not path.exists():
            known = ", ".join(self.versions()) or "none yet"
            raise DataError(f"{self.path}: no version {version!r}; there are: {known}")
        return _complete(path, read_json(path), VersionRecord.__required_keys__)

    def applied_seq(self, version: str) -> int:
        """The sequence number of the last catalog change that the version's stores contain."""
        path = self.directory(version) / "applied.json"
        return int(_complete(path, read_json(path), {"seq"})["seq"]) if path.exists() else int(self.record(version)["seq"])

    def set_applied_seq(self, version: str, seq: int) -> None:
        """Publish that number; the vectors are durable before it is."""
        write_json(self.directory(version) / "applied.json", {"seq": seq})

    def store_location(self, version: str, modality: str, store: Mapping[str, str | None] | StoreConfig) -> StoreLocation:
        """Where the store of a version's modality is. The URL `env:NAME` is read from the environment, so that no file need
        hold a password; DataError when the variable is not set."""
        url = store.get("url")
        if url and url.startswith("env:"):
            name = url[4:]
            if name not in os.environ:
                raise DataError(f"the collection's store needs the environment variable {name} (the database's URL)")
            url = os.environ[name]
        slug = re.sub(r"[^a-z0-9]+", "_", self.manifest["name"].lower()).strip("_")[:24] or "collection"
        name = f"{slug}_{self.manifest['uid']}_{version}_{modality}"[:60]
        return StoreLocation(str(store["kind"]), self.directory(version) / modality, url, name)

    # --- writers -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str = "write", wait: float = LOCK_SECONDS) -> Iterator[None]:
        """One holder at a time, over threads and processes; the kernel frees the lock of a killed process. DataError after
        `wait` seconds."""
        lock = file_lock(self.path / f".{name}.lock")
        try:
            lock.acquire(timeout=wait, poll_interval=0.01)
        except Timeout:
            raise DataError(f"{self.path}: another {name} is going on in it; wait for it, or stop it") from None
        try:
            yield
        finally:
            lock.release()
