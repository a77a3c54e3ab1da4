"""Search every file of a collection for what is left of an erased item: its id, its content and its vectors."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.collection_results import CollectionResult
from mmtune.index.item_catalog import Catalog
from mmtune.index.maintenance.mask_item import DOCUMENTS, FEEDBACK, LOGS, id_pattern, names_item
from mmtune.index.maintenance.pending_work import FILE, Erasure
from mmtune.index.version_pool import VersionPool
from mmtune.runtime.progress import Progress
from mmtune.runtime.segmented_log import log_files

WINDOW = 48
"""Bytes of a content or a vector that are searched for. Databases split long values over pages, so several windows are used."""
WINDOWS = 8
"""Windows per content."""
BLOCK = 8 << 20
"""Bytes that are read at once."""
MIN_ID_BYTES = 6
"""A shorter id is not searched for as bytes, because numbers in binary files would match it; its structured look-ups remain."""


@dataclass(frozen=True, eq=False)
class ErasureProof(CollectionResult):
    """What was searched, and what was found.

    files, bytes: number and size of the files that were read.
    id_bytes: whether the id was searched for as bytes.
    windows: number of byte sequences of the contents and vectors that were searched for.
    looked_up: the look-ups of the id: catalog, stores, logs.
    found: places where something of the item is left; [] means that nothing is.
    """

    files: int
    bytes: int
    id_bytes: bool
    windows: int
    looked_up: Sequence[str]
    found: Sequence[str]


def windows_of(data: bytes) -> list[str]:
    """Return byte sequences of a content, in hexadecimal, evenly spread. Content shorter than a window gives none."""
    if len(data) < WINDOW:
        return []
    starts = np.unique(np.linspace(0, len(data) - WINDOW, WINDOWS).astype(int)).tolist()
    return list(dict.fromkeys(data[s : s + WINDOW].hex() for s in starts))


def vector_window(vector_D: np.ndarray) -> str:
    """Return the first bytes of a float32 vector, in hexadecimal."""
    return np.ascontiguousarray(vector_D, np.float32).tobytes()[:WINDOW].hex()


def prove(layout: CollectionLayout, catalog: Catalog, pool: VersionPool, erasure: Erasure, quiet: bool = True) -> ErasureProof:
    """Search for what is left of the item. The list of pending work, which names the item until the end, is not searched."""
    item, found, looked_up = erasure["item"], list[str](), ["catalog"]
    db = catalog.connection()
    for table in ("items", "content"):
        if db.execute(f"select count(*) from {table} where id = ?", (item,)).fetchone()[0]:
            found.append(f"catalog: table {table}")
    for version in layout.versions():
        record = layout.record(version)
        for m in record["modalities"]:
            looked_up.append(f"{version} {m} ({record['store']['kind']})")
            with pool.store(record, m) as store:
                if item in set(store.ids()):
                    found.append(f"version {version}: the {m} store")
    needles = [bytes.fromhex(n) for n in erasure["needles"]]
    contained = db.execute("select count(*) from items where instr(id, ?) > 0", (item,)).fetchone()[0] > 0
    search_id = len(item.encode("utf-8", "replace")) >= MIN_ID_BYTES
    size = 0
    logs = {p for name in (*LOGS, FEEDBACK) for p in log_files(layout.path / name)}
    files = sorted(p for p in layout.path.rglob("*") if p.is_file() and p.name != FILE and not p.name.endswith(".lock"))
    with Progress("search for what is left", len(files), "files", quiet) as progress:
        for path in files:
            size += path.stat().st_size
            if path in logs or path.name in DOCUMENTS:
                lines = [path.read_bytes()] if path.name in DOCUMENTS else path.read_bytes().split(b"\n")
                what = ["its id"] if any(names_item(line, item) for line in lines) else []
            else:
                what = _search(path, item if search_id else None, contained, needles)
            found += [f"{path.relative_to(layout.path)}: {w}" for w in what]
            progress.advance(1, f"{size / 1e6:.0f} MB")
    return ErasureProof(len(files), size, search_id, len(needles), looked_up, found)


def _search(path: Path, item: str | None, whole: bool, needles: Sequence[bytes]) -> list[str]:
    """Return what a file contains: "its id", "its content or vector".

    whole: the id must not be part of a longer id.
    """
    pattern = None if item is None else id_pattern(item)
    plain = [] if item is None or whole else [item.encode("utf-8", "replace"), json.dumps(item).encode()[1:-1]]
    overlap = max([WINDOW, 0 if item is None else 6 * len(item) + 2])
    found, tail = set[str](), b""
    with open(path, "rb") as f:
        while block := f.read(BLOCK):
            data = tail + block
            if plain and any(p in data for p in plain) or not plain and pattern is not None and pattern.search(data):
                found.add("its id")
            if any(n in data for n in needles):
                found.add("its content or vector")
            tail = data[-overlap:]
    return sorted(found)
