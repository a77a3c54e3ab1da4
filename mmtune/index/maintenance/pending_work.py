"""Unfinished maintenance of a collection, in COLL/pending.json: what a killed process, or a database that was away, left to do.

The file is written before the work begins and updated when a part of it is finished. It does not exist when nothing is to do.
"""

from typing import NotRequired, TypedDict

from mmtune.index.collection_layout import CollectionLayout, StoreConfig
from mmtune.runtime.files import read_json, write_json

FILE = "pending.json"


class Erasure(TypedDict):
    """An item that is being erased.

    contents: {modality: content hash} of the item.
    sha256: hashes of the item's contents, in hexadecimal.
    needles: byte sequences of the item's contents and vectors, in hexadecimal, to search the files for.
    """

    item: str
    why: str
    contents: dict[str, int]
    sha256: list[str]
    needles: list[str]


class StoreRemoval(TypedDict):
    """A store of a dropped version that must be deleted. uid: id of the collection, which is part of the table's name."""

    version: str
    modality: str
    store: StoreConfig
    uid: NotRequired[str]


class PendingWork(TypedDict):
    """The content of pending.json.

    fill: versions of a restored or cloned collection whose stores must be filled from the cached vectors.
    """

    erasures: list[Erasure]
    removals: list[StoreRemoval]
    fill: list[str]


def read_pending(layout: CollectionLayout) -> PendingWork:
    """Return the unfinished work."""
    path = layout.path / FILE
    found = read_json(path) if path.exists() else {}
    return {"erasures": found.get("erasures", []), "removals": found.get("removals", []), "fill": found.get("fill", [])}


def write_pending(layout: CollectionLayout, work: PendingWork) -> None:
    """Replace the list of unfinished work atomically. The caller must hold the write lock."""
    if any(work.values()):
        write_json(layout.path / FILE, work)
    else:
        (layout.path / FILE).unlink(missing_ok=True)
