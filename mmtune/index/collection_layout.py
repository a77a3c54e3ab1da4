"""Paths and small files of a collection: the live pointer, the records of the versions, and the write lock.

COLL is the directory of the collection:

    COLL/collection.json        format, name and unique id of the collection
    COLL/live.json              the live pointer, with the audit event of its last move; replaced atomically
    COLL/models/FINGERPRINT/    the saved models of the versions
    COLL/vectors/FINGERPRINT/   cache of embeddings, keyed by content hash
    COLL/corpus/                the catalog of items
    COLL/home.json              path and inode of the collection, to recognise a copy of it
    COLL/pending.json           unfinished maintenance (`mmtune.index.maintenance.pending_work`)
    COLL/history/               counts of served searches and results of probes (`mmtune.index.monitoring`)
    COLL/journal.jsonl          the audit log; feedback.jsonl, interleave.jsonl, shadow.jsonl: other logs
    COLL/versions/v1/           version.json (the version's record), canaries, the gate's queries, stores
A version exists if and only if its version.json exists; that file is written last.
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
from mmtune.runtime.format_number import check_format
from mmtune.runtime.work_lock import Timeout, lock_in_turn

T = TypeVar("T")
FORMAT = 1
LOCK_SECONDS = 120.0
"""Seconds that a writer waits for the write lock. Writers hold it for a short time only."""


class CollectionManifest(TypedDict):
    """The content of collection.json.

    uid: random id; it makes the table names of different collections in one database unique.
    """

    format: int
    name: str
    uid: str
    created: str


class LivePointer(TypedDict):
    """The content of live.json.

    version: the live version; None when no version is live yet.
    previous: the version that `rollback` makes live.
    history: versions that were live before, oldest first.
    generation: counter of the moves of the pointer.
    since: time of the last move.
    event: audit event of the last move.
    """

    version: str | None
    previous: str | None
    history: list[str]
    generation: int
    since: str | None
    event: JsonObject | None


class StoreConfig(TypedDict):
    """The kind of vector store of a version, and its database URL. `env:NAME` means the URL in environment variable NAME."""

    kind: str
    url: str | None


class VersionRecord(TypedDict):
    """The content of version.json, the record of a version.

    index: index settings by modality.
    seq: sequence number of the catalog when the version was built.
    model: MODEL string from which the version was built.
    identity: hashes of the weights, files and settings of the saved model (see `pinned_model`).
    event: audit event of the build.
    """

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
    """Return the current UTC time in ISO 8601 format, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _complete(path: Path, document: T, keys: Collection[str]) -> T:
    """Return the JSON document of a file. Raises DataError when it is not an object with these keys."""
    missing = sorted(keys) if not isinstance(document, dict) else sorted(set(keys) - set(document))
    if missing:
        raise DataError(f"{path}: damaged: no {', '.join(missing)} in it; restore the file from a backup")
    return document


def resolve_url(url: str) -> str:
    """Return a database URL; `env:NAME` is replaced by the environment variable NAME. Raises DataError if that is not set."""
    if not url.startswith("env:"):
        return url
    if (name := url[4:]) not in os.environ:
        raise DataError(f"the database needs the environment variable {name}; set it to the database's URL")
    return os.environ[name]


class CollectionLayout:
    """Paths and small files of one collection.

    create: create an empty collection if there is none; otherwise a missing collection raises DataError.
    """

    def __init__(self, path: str | os.PathLike[str], create: bool = False):
        self.path = Path(path)
        manifest = self.path / "collection.json"
        if not manifest.exists():
            if not create:
                raise DataError(f"{self.path}: not a collection (no collection.json); create one with `mmtune index build`")
            if self.path.exists() and any(p for p in self.path.iterdir() if not p.name.startswith(".")):
                raise DataError(f"{self.path}: the directory is not empty and not a collection; name a new directory")
            write_json(manifest, {"format": FORMAT, "name": self.path.name, "uid": uuid.uuid4().hex[:8], "created": now()})
        self.manifest: CollectionManifest = read_json(manifest)
        check_format(self.manifest.get("format"), FORMAT, manifest, DataError)

    # --- the live pointer ----------------------------------------------------------------------------------------

    def live(self) -> LivePointer:
        """Read the live pointer; its version is None when no version is live yet."""
        path = self.path / "live.json"
        try:
            return _complete(path, read_json(path), LivePointer.__required_keys__)
        except DataError:
            if path.exists():
                raise
            return NOTHING_LIVE

    def set_live(self, pointer: LivePointer) -> None:
        """Replace the live pointer atomically. This is the step of a promotion or rollback that takes effect."""
        write_json(self.path / "live.json", pointer)

    # --- versions ------------------------------------------------------------------------------------------------

    def directory(self, version: str) -> Path:
        """Return the directory of a version.

        Raises DataError for a name other than v1, v2, ..., so that no other string can become part of a path.
        """
        if not re.fullmatch(r"v[1-9]\d*", version):
            raise DataError(f"{version!r} is not a version name; versions are named v1, v2, ...")
        return self.path / "versions" / version

    def versions(self) -> list[str]:
        """Return the names of the complete versions, oldest first."""
        names = [p.parent.name for p in (self.path / "versions").glob("v*/version.json")]
        return sorted(names, key=lambda v: int(v[1:]))

    def record(self, version: str) -> VersionRecord:
        """Read the record of a version. Raises DataError, listing the existing versions, when it does not exist."""
        path = self.directory(version) / "version.json"
        if not path.exists():
            known = ", ".join(self.versions()) or "none yet"
            raise DataError(f"{self.path}: no version {version!r}; existing versions: {known}")
        return _complete(path, read_json(path), VersionRecord.__required_keys__)

    def applied_seq(self, version: str) -> int:
        """Return the sequence number of the last catalog change that the version's stores contain."""
        path = self.directory(version) / "applied.json"
        return int(_complete(path, read_json(path), {"seq"})["seq"]) if path.exists() else int(self.record(version)["seq"])

    def set_applied_seq(self, version: str, seq: int) -> None:
        """Record the sequence number that the version's stores are at. Call it only after the vectors are durable."""
        write_json(self.directory(version) / "applied.json", {"seq": seq})

    def store_location(self, version: str, modality: str, store: Mapping[str, str | None] | StoreConfig) -> StoreLocation:
        """Return the location of a version's store for one modality.

        A URL `env:NAME` is replaced by the environment variable NAME, so that no file needs to contain a password; `{modality}` in
        it is replaced by the modality. Raises DataError when that variable is not set.
        """
        url = store.get("url")
        if url:
            self._require_original()
            url = resolve_url(url).replace("{modality}", modality)
        slug = re.sub(r"[^a-z0-9]+", "_", self.manifest["name"].lower()).strip("_")[:24] or "collection"
        name = f"{slug}_{self.manifest['uid']}_{version}_{modality}"[:60]
        return StoreLocation(str(store["kind"]), self.directory(version) / modality, url, name)

    def _require_original(self) -> None:
        """Raises DataError for a copy of a collection (`cp -r`): its tables in a database are those of the original.

        COLL/home.json holds the collection's path and the inode of its collection.json. A moved collection keeps the inode, and
        one that was restored from a file backup keeps the path; a copy has neither.
        """
        path = self.path / "home.json"
        here = {"path": str(self.path.resolve()), "inode": os.stat(self.path / "collection.json").st_ino}
        home = read_json(path) if path.exists() else here
        if here["path"] != home["path"] and here["inode"] != home["inode"]:
            raise DataError(
                f"{self.path}: a copy of {home['path']}, whose database tables it must not share; make a copy with tables of its "
                f"own: `mmtune index clone {self.path} NEW`"
            )
        if home != here or not path.exists():
            with contextlib.suppress(OSError):  # a read-only disk
                write_json(path, here)

    # --- writers -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, name: str = "write", wait: float = LOCK_SECONDS) -> Iterator[None]:
        """Context manager that holds a lock, exclusive among all threads and processes. Threads get it in the order in which they ask.

        The OS releases the lock when the process ends, even if it is killed.

        name: "write" (the write lock), or another name for a lock of its own.
        wait: timeout in seconds. Raises DataError when another holder keeps the lock for longer.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(lock_in_turn(self.path / f".{name}.lock", wait, 0.01))
            except Timeout:
                raise DataError(f"{self.path}: another {name} is running; wait until it has finished, or stop it") from None
            yield
