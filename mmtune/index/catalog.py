"""The items as a collection knows them, COLL/corpus/items.sqlite: ids, groups, metadata, and where the content lies.

QueryContent of packed data stays in its shards; content that was handed over as rows is kept here. Every change of an item carries
a sequence number, and a deleted item leaves its number behind: a version is brought up to date by what is newer than what it
applied, whichever way it fell behind. One change is one transaction: a killed one never happened.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Row
from mmtune.data.identity_labels import label
from mmtune.data.shards.dataset import Data, open_data
from mmtune.errors import DataError, Rejected

SCHEMA = """
create table if not exists items(id text primary key, grp text, meta text not null, seq integer not null,
    deleted integer not null, id_label integer not null, group_label integer not null);
create index if not exists items_seq on items(seq);
create table if not exists content(id text, modality text, label integer not null, source integer not null,
    primary key(id, modality)) without rowid;
create table if not exists sources(number integer primary key, shards text not null unique);
create table if not exists blobs(modality text, label integer, data blob not null, primary key(modality, label));
create table if not exists state(name text primary key, value integer not null);
"""
HERE = 0  # the source number of content that lies in the table of blobs
CHUNK = 500


@dataclass(frozen=True, slots=True)
class Item:
    """One item; contents: modality -> (label of the content, number of its source). Deleted ones have no contents."""

    id: str
    group: str | None
    meta: dict[str, Any]
    deleted: bool
    id_label: int
    group_label: int
    contents: dict[str, tuple[int, int]]

    @property
    def columns(self) -> dict[str, Any]:
        """The metadata that goes into a store: the item's own, and its group."""
        return self.meta if self.group is None else {"group": self.group, **self.meta}


class Catalog:
    """Items by id. Threads have connections of their own; writers hold the collection's write lock."""

    def __init__(self, directory: Path):
        self.path = directory / "items.sqlite"
        directory.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._data: dict[int, tuple[Data, dict[str, int]]] = {}
        self._guard = threading.Lock()
        with self._db() as db:
            if db.execute("select count(*) from sqlite_master where name = 'state'").fetchone()[0] == 0:
                db.executescript(SCHEMA)

    def _db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = sqlite3.connect(self.path, timeout=60)
            db.execute("pragma journal_mode = wal")
            db.execute("pragma synchronous = full")
        return db

    def close(self) -> None:
        """This thread's connection."""
        db = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """The number of the last change."""
        row = self._db().execute("select value from state where name = 'seq'").fetchone()
        return int(row[0]) if row else 0

    def __len__(self) -> int:
        return int(self._db().execute("select count(*) from items where deleted = 0").fetchone()[0])

    def changed(self, since: int, until: int | None = None) -> Iterator[list[Item]]:
        """Items whose last change is newer than `since` (0: all that are not deleted), in chunks, oldest change first."""
        query = "select id, grp, meta, deleted, id_label, group_label from items where seq > ? and seq <= ?"
        query += " and deleted = 0" if since == 0 else ""
        cursor = self._db().execute(query + " order by seq, rowid", (since, until if until is not None else 2**62))
        while rows := cursor.fetchmany(CHUNK):
            yield self._items(rows)

    def items(self, ids: Sequence[str]) -> dict[str, Item]:
        """Those of `ids` that are there and not deleted."""
        out = {}
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            marks = ",".join("?" * len(part))
            query = f"select id, grp, meta, deleted, id_label, group_label from items where deleted = 0 and id in ({marks})"
            out.update({i.id: i for i in self._items(self._db().execute(query, part).fetchall())})
        return out

    def _items(self, rows: list[Any]) -> list[Item]:
        marks = ",".join("?" * len(rows))
        query = f"select id, modality, label, source from content where id in ({marks})"
        contents: dict[str, dict[str, tuple[int, int]]] = {}
        for name, modality, mark, source in self._db().execute(query, [r[0] for r in rows]):
            contents.setdefault(name, {})[modality] = (mark, source)
        return [Item(r[0], r[1], json.loads(r[2]), bool(r[3]), r[4], r[5], contents.get(r[0], {})) for r in rows]

    def sample(self, modality: str, count: int, until: int = 2**62) -> list[Item]:
        """Items that have the modality and whose last change is not after `until`; the same draw every time (by label)."""
        query = "select c.id from content c join items i on i.id = c.id where c.modality = ? and i.seq <= ?"
        query += " order by c.label limit ?"
        ids = [r[0] for r in self._db().execute(query, (modality, until, count))]
        return list(self.items(ids).values())

    def count(self, modalities: Sequence[str]) -> int:
        """How many items have one of these modalities."""
        marks = ",".join("?" * len(modalities))
        query = f"select count(distinct id) from content where modality in ({marks})"
        return int(self._db().execute(query, list(modalities)).fetchone()[0])

    def counts(self) -> dict[str, int]:
        """How many items have each modality."""
        return dict(self._db().execute("select modality, count(*) from content group by modality order by modality"))

    def data(self, source: int) -> tuple[Data, dict[str, int]]:
        """A source's shards, opened, and the row number of every id."""
        with self._guard:
            if source not in self._data:
                row = self._db().execute("select shards from sources where number = ?", (source,)).fetchone()
                opened = open_data(json.loads(row[0]))
                self._data[source] = (opened, {name: i for i, name in enumerate(opened.ids)})
            return self._data[source]

    def where(self, item: Item, modality: str) -> tuple[Data, int]:
        """The shards and the row that hold the content. DataError when they hold another one by now."""
        mark, source = item.contents[modality]
        data, rows = self.data(source)
        at = rows.get(item.id)
        if at is None or modality not in data.labels or int(data.labels[modality][at]) != mark:
            raise DataError(
                f"{data.spec}: {modality} of item {item.id!r} is not what the collection read there; "
                "bring the collection up to date with `mmtune index upsert COLLECTION --data DATA`"
            )
        return data, at

    def read(self, item: Item, modality: str) -> bytes:
        """The content itself. KeyError where the item lacks it."""
        mark, source = item.contents[modality]
        if source == HERE:
            query = "select data from blobs where modality = ? and label = ?"
            return bytes(self._db().execute(query, (modality, mark)).fetchone()[0])
        data, at = self.where(item, modality)
        return data.read(at, modality)

    # --- writing -------------------------------------------------------------------------------------------------

    def load(self, data: Data, prune: bool = False) -> dict[str, int]:
        """Take the rows of `data`: {"new", "changed", "same", "kept", "deleted"}. Ids that it lacks stay, unless `prune`."""
        names = sorted({s.url if "://" in s.url else os.path.abspath(s.url) for s in data.shards})
        with self._db() as db:
            db.execute("begin immediate")
            db.execute("insert or ignore into sources(shards) values (?)", (json.dumps(names),))
            source = db.execute("select number from sources where shards = ?", (json.dumps(names),)).fetchone()[0]
            seq = self._next(db)
            counts = {"new": 0, "changed": 0, "same": 0}
            for start in range(0, len(data), CHUNK):
                here = range(start, min(len(data), start + CHUNK))
                self._take([_item_of(data, i, source) for i in here], seq, counts)
            gone = []
            if prune:
                have = set(data.ids)
                gone = [r[0] for r in db.execute("select id from items where deleted = 0") if r[0] not in have]
                self._drop(db, gone, seq)
            counts |= {"kept": len(self) - len(data), "deleted": len(gone)}
        with self._guard:
            self._data.pop(source, None)  # the same shards may have been packed anew
        return counts

    def put(self, rows: Iterable[Row]) -> tuple[dict[str, int], list[dict[str, str]]]:
        """Take rows with their content: (counts, rejected [{"id", "reason"}])."""
        counts, rejected, items = {"new": 0, "changed": 0, "same": 0}, [], []
        blobs: list[tuple[str, int, bytes]] = []
        for row in rows:
            try:
                contents = _checked(row)
            except Rejected as e:
                rejected.append({"id": row.id, "reason": str(e)})
                continue
            blobs += [(m, mark, row.values[m]) for m, mark in contents.items()]
            group = label(row.group.encode("utf-8", "replace")) if row.group else 0
            places = {m: (mark, HERE) for m, mark in contents.items()}
            items.append(
                Item(row.id, row.group, dict(row.meta), False, label(row.id.encode("utf-8", "replace")), group, places)
            )
        with self._db() as db:
            db.execute("begin immediate")
            db.executemany("insert or ignore into blobs values (?, ?, ?)", blobs)
            seq = self._next(db)
            for start in range(0, len(items), CHUNK):
                self._take(items[start : start + CHUNK], seq, counts)
        return counts, rejected

    def remove(self, ids: Sequence[str]) -> int:
        """Delete items; returns how many were there."""
        with self._db() as db:
            db.execute("begin immediate")
            there = list(self.items(list(dict.fromkeys(ids))))
            self._drop(db, there, self._next(db))
        return len(there)

    def _next(self, db: sqlite3.Connection) -> int:
        db.execute("insert into state values ('seq', 1) on conflict(name) do update set value = value + 1")
        return self.seq

    def _take(self, items: list[Item], seq: int, counts: dict[str, int]) -> None:
        db, known = self._db(), self.items([i.id for i in items])
        if len({i.id for i in items}) < len(items):
            twice = next(i.id for n, i in enumerate(items) if i.id in {x.id for x in items[:n]})
            raise DataError(f"the id {twice!r} is there twice; ids must be unique")
        moved: list[Item] = []
        for item in items:
            old = known.get(item.id)
            same = old is not None and _key(old) == _key(item)
            counts["same" if same else "changed" if old else "new"] += 1
            if not same:
                values = (item.id, item.group, _dump(item.meta), seq, 0, item.id_label, item.group_label)
                db.execute("insert or replace into items values (?, ?, ?, ?, ?, ?, ?)", values)
            if not same or old is not None and old.contents != item.contents:
                moved.append(item)  # the same content at another place: nothing to embed, but to be read from there
        db.executemany("delete from content where id = ?", [(i.id,) for i in moved])
        lines = [(i.id, m, mark, source) for i in moved for m, (mark, source) in i.contents.items()]
        db.executemany("insert into content values (?, ?, ?, ?)", lines)

    def _drop(self, db: sqlite3.Connection, ids: Sequence[str], seq: int) -> None:
        db.executemany("update items set deleted = 1, seq = ? where id = ?", [(seq, i) for i in ids])
        db.executemany("delete from content where id = ?", [(i,) for i in ids])


def _dump(meta: dict[str, Any]) -> str:
    return json.dumps(meta, sort_keys=True, ensure_ascii=False)


def _key(item: Item) -> Any:
    return item.group, _dump(item.meta), item.id_label, {m: mark for m, (mark, _) in item.contents.items()}


def _item_of(data: Data, i: int, source: int) -> Item:
    contents = {m: (int(data.labels[m][i]), source) for m in data.modalities if data.present[m][i]}
    labels = int(data.labels["id"][i]), int(data.labels["group"][i])
    return Item(data.ids[i], data.groups[i], data.meta(i), False, *labels, contents)


def _checked(row: Row) -> dict[str, int]:
    """Labels of a row's contents. Rejected for an undecodable one, an empty row, or an empty id."""
    if not isinstance(row.id, str) or not row.id:
        raise Rejected("an item needs an id")
    if not row.values:
        raise Rejected("no content of any modality")
    out = {}
    for name, value in row.values.items():
        kind = modalities.get(name)
        try:
            kind.check(value)
            out[name] = label(kind.content_key(value))
        except Rejected as e:
            raise Rejected(f"{name}: {e}") from None
    return out


def labels_of(items: Sequence[Item], modality: str) -> np.ndarray:
    """int64 [N] of items that all have the modality."""
    return np.array([i.contents[modality][0] for i in items], np.int64)
