"""Copy a collection as it is at one moment, while other processes write to it: as a backup file, or as a clone.

A backup is a tar file with the catalog, the models, the cached vectors, the versions and the logs, and in its last member the
SHA-256 hash of every file. Vectors in a database are not part of it: they are written again from the cached vectors when the
backup is restored. A restored collection and a clone have an id of their own, and so tables of their own.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.collection_layout import CollectionLayout, VersionRecord, now
from mmtune.index.collection_results import CollectionResult
from mmtune.index.maintenance.pending_work import PendingWork, write_pending
from mmtune.runtime.files import AtomicFile, read_json, sha256_file, write_json, write_text
from mmtune.runtime.format_number import check_format
from mmtune.runtime.progress import Progress

HASHES = "sha256.json"
FORMAT = 2
"""The last member of a backup: {path: SHA-256 of the file}."""
IMMUTABLE = {".safetensors", ".arrow", ".index", ".lance", ".txt"}
"""Suffixes of files that are replaced, and never changed in place: a hard link keeps their content."""
STAGING = ".tmp-backup-"
BACKUP_LOCK = ".backup.lock"
"""Locked while a backup is running, so that `gc` knows which staging directories a killed one left."""
SNAPSHOT, UNFINISHED = "files", "unfinished.txt"
"""In a staging directory: the copy of the collection, and the path of the backup while it is being written."""
SKIPPED = {"home.json"}


@dataclass(frozen=True, eq=False)
class BackupResult(CollectionResult):
    """A backup file: its path, the number and total bytes of the files in it, and the live version.

    removed: unfinished backup files that killed backups of this collection had left
    """

    path: str
    files: int
    bytes: int
    live: str | None
    removed: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class CopyResult(CollectionResult):
    """A restored or cloned collection: its path, its new id, its versions, and the live version."""

    path: str
    uid: str
    versions: list[str]
    live: str | None


def _files(layout: CollectionLayout) -> Iterator[Path]:
    """Yield the files that make up the collection, without locks, temporary files, unfinished versions, and stores that a copy
    fills again from the cached vectors."""
    complete = set(layout.versions())
    filled: set[tuple[str, ...]] = set()
    for version in complete:
        with contextlib.suppress(DataError):  # a damaged record is copied as it is
            record = layout.record(version)
            if _is_filled_again(record):
                filled |= {(version, m) for m in record["modalities"]}
    for path in sorted(layout.path.rglob("*")):
        parts = path.relative_to(layout.path).parts
        if not path.is_file() or any(p.startswith(".") for p in parts) or parts[0] in SKIPPED:
            continue
        if parts[0] == "versions" and len(parts) > 1 and parts[1] not in complete or parts[:1] == ("corpus",):
            continue
        if parts[0] == "versions" and len(parts) > 3 and parts[1:3] in filled:
            continue
        yield path


def _is_filled_again(record: VersionRecord) -> bool:
    """Whether the version's stores are written again from the cached vectors in a restored or cloned collection: tables, whose
    name contains the collection's id, and files that a writer changes in place."""
    return bool(record["store"].get("url")) or record["store"]["kind"] != "faiss"


def snapshot(layout: CollectionLayout, directory: Path, quiet: bool = True) -> None:
    """Copy the collection to `directory`. Writers wait meanwhile: files that never change are only linked, if possible."""
    with layout.lock():
        files = list(_files(layout))
        with Progress("copy", len(files), "files", quiet) as progress:
            for path in files:
                _copy_file(path, directory / path.relative_to(layout.path))
                progress.advance(1)
        (directory / "corpus").mkdir(parents=True, exist_ok=True)
        source, copy = (sqlite3.connect(d / "corpus" / "items.sqlite") for d in (layout.path, directory))
        with copy:
            source.backup(copy)
        copy.close()
        source.close()


def _copy_file(path: Path, target: Path) -> None:
    """Copy a file, or link one that never changes, if possible."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in IMMUTABLE:
        with contextlib.suppress(OSError):  # another disk, or one without hard links
            os.link(path, target)
            return
    shutil.copyfile(path, target)


def backup(layout: CollectionLayout, out: Path, quiet: bool = True) -> BackupResult:
    """Write a backup to the file `out`, atomically."""
    if out.exists():
        raise DataError(f"{out}: the file exists; name a new one")
    if layout.path.resolve() in out.resolve().parents:
        raise DataError(f"{out}: is inside the collection; write the backup elsewhere")
    staging = layout.path / f"{STAGING}{uuid.uuid4().hex}"
    temporary = out.resolve().with_name(f"{staging.name}.tar")
    with layout.lock("backup"):
        removed = [p for left in layout.path.glob(f"{STAGING}*") for p in remove_killed_backup(left) if p != left]
        try:
            staging.mkdir()
            write_text(staging / UNFINISHED, str(temporary))
            snapshot(layout, staging / SNAPSHOT, quiet)
            return replace(_write_tar(staging / SNAPSHOT, out, temporary, quiet), removed=[str(p) for p in removed])
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def remove_killed_backup(staging: Path) -> list[Path]:
    """Remove what a killed backup left: its staging directory, and the unfinished file beside its `--out`; return their paths.

    The caller must hold the lock "backup", so that no backup of this collection is running.
    """
    removed = []
    with contextlib.suppress(OSError, UnicodeDecodeError):  # killed before it was written, or on a disk that is away
        unfinished = Path((staging / UNFINISHED).read_text())
        if unfinished.name == f"{staging.name}.tar":
            unfinished.unlink()
            removed.append(unfinished)
    shutil.rmtree(staging, ignore_errors=True)
    return [*removed, staging]


def _write_tar(staging: Path, out: Path, temporary: Path, quiet: bool) -> BackupResult:
    hashes: dict[str, str] = {}
    size = 0
    live = CollectionLayout(staging).live()["version"]
    files = sorted(p for p in staging.rglob("*") if p.is_file())
    shown = Progress("backup", len(files), "files", quiet)
    with AtomicFile(out, temporary) as f, tarfile.open(fileobj=f, mode="w") as tar, shown as progress:
        for path in files:
            name = path.relative_to(staging).as_posix()
            hashes[name] = sha256_file(path)
            size += path.stat().st_size
            tar.add(path, name, recursive=False)
            progress.advance(1, f"{size / 1e6:.0f} MB")
        document = json.dumps({"format": FORMAT, "files": hashes}, indent=1).encode()
        info = tarfile.TarInfo(HASHES)
        info.size = len(document)
        tar.addfile(info, io.BytesIO(document))
    return BackupResult(str(out), len(hashes), size, live)


def restore(file: Path, target: Path, quiet: bool = True) -> CopyResult:
    """Unpack a backup as the new collection `target`, after its files have been compared with their hashes.

    The stores that are not files of the backup are listed in pending.json; they are filled when the collection is opened.
    """
    staging = _staging(target)
    try:
        try:
            with tarfile.open(file, "r:") as tar:
                tar.extractall(staging, filter="data")
        except FileNotFoundError:
            raise DataError(f"{file}: no such file") from None
        except (tarfile.TarError, EOFError) as e:
            raise DataError(f"{file}: not a backup, or damaged ({e})") from None
        if not (staging / HASHES).exists():
            raise DataError(f"{file}: not a complete backup: it has no {HASHES}")
        hashes = _hashes(read_json(staging / HASHES), file)
        (staging / HASHES).unlink()
        present = {p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file()}
        wrong = sorted(present ^ set(hashes)) or _differing(staging, hashes, quiet)
        if wrong:
            raise DataError(f"{file}: damaged: {wrong[0]} is not what was backed up ({len(wrong)} files); use another backup")
        return _publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _differing(staging: Path, hashes: dict[str, str], quiet: bool) -> list[str]:
    """Return the names of the files that do not have their hash."""
    wrong = []
    with Progress("restore", len(hashes), "files", quiet) as progress:
        for name, digest in sorted(hashes.items()):
            if sha256_file(staging / name) != digest:
                wrong.append(name)
            progress.advance(1)
    return wrong


def _hashes(document: JsonObject, file: Path) -> dict[str, str]:
    """Return {name: SHA-256} of the files of a backup. Format 1, which had no number, was this mapping alone."""
    if check_format(document.get("format"), FORMAT, file, DataError, missing=1) == 1:
        return document
    files: dict[str, str] = document["files"]
    return files


def clone(layout: CollectionLayout, target: Path, quiet: bool = True) -> CopyResult:
    """Copy a collection to the new collection `target`, with an id and tables of its own."""
    staging = _staging(target)
    try:
        snapshot(layout, staging, quiet)
        return _publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _staging(target: Path) -> Path:
    """Return the temporary directory beside `target`; what a killed process left in it is removed."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target}: exists already; name a new directory")
    name = hashlib.sha256(target.name.encode()).hexdigest()[:8]
    staging = target.absolute().with_name(f".tmp-restore-{name}")
    shutil.rmtree(staging, ignore_errors=True)
    return staging


def _publish(staging: Path, target: Path) -> CopyResult:
    """Give a copied collection its own id and rename it to `target`."""
    manifest = read_json(staging / "collection.json")
    uid = uuid.uuid4().hex[:8]
    write_json(staging / "collection.json", {**manifest, "name": target.name, "uid": uid, "created": now()})
    layout = CollectionLayout(staging)
    work: PendingWork = {"erasures": [], "removals": [], "fill": []}
    for version in layout.versions():
        if _is_filled_again(layout.record(version)):
            work["fill"].append(version)
    write_pending(layout, work)
    versions, live = layout.versions(), layout.live()["version"]
    if target.exists():
        target.rmdir()
    os.replace(staging, target)
    return CopyResult(str(target), uid, versions, live)
