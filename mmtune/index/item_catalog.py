"""The catalog of items in COLL/corpus/items.sqlite: ids, groups, metadata, and where the content of each item is stored.

The content of packed data stays in its shards. The content of items that were passed as rows is stored in the catalog itself.
Every change gets a sequence number, and a deleted item leaves a tombstone with the number of its deletion. A version is brought
up to date by applying all changes with a higher number than the last one it has applied. Each change is one SQLite transaction.
"""

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtune.contracts import JsonObject, Row
from mmtune.data.identity_labels import stable_label
from mmtune.data.shards.dataset import Data, open_data
from mmtune.errors import DataError, Rejected
from mmtune.index.collection_results import RejectedItem
from mmtune.index.query.filters import value_kind
from mmtune.index.row_contents import content_labels
from mmtune.index.stores.store_rows import check_id, plain_metadata

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
CONTENT_INDEX = "create index if not exists content_label on content(label)"
COLUMNS_SCHEMA = """
create table if not exists columns(name text, kind text, primary key(name, kind)) without rowid;
insert or ignore into columns select distinct j.key, case j.type when 'integer' then 'n' when 'real' then 'n' when 'true' then 'b'
    when 'false' then 'b' when 'array' then 'j' when 'object' then 'j' when 'null' then '' else 's' end
    from items, json_each(items.meta) j where deleted = 0;
insert into state values ('columns', 1) on conflict(name) do nothing;
"""
"""Creates the table of metadata columns, with the kinds of their values (`filters.value_kind`, or "" for null). It also lists
columns that no item has any more. For a catalog that an earlier version of mmtune wrote, it is filled from the items."""
ITEM_COLUMNS = "id, grp, meta, deleted, id_label, group_label"
STORED_HERE = 0
"""Source number of content that is stored in the catalog's own table `blobs`, not in shards."""
GROUP_COLUMN = "meta.group"
"""Payload key of a metadata column that is named "group". The payload key "group" is the item's group instead."""
CHUNK = 500
"""Items per SQL query."""
NO_LIMIT = 2**62
"""Larger than any sequence number."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the catalog.

    deleted: True for a tombstone, which has no contents.
    id_label, group_label: 64-bit hashes of id and group.
    contents: {modality: (64-bit content hash, called label; number of the source that stores the content)}.
    """

    id: str
    group: str | None
    meta: JsonObject
    deleted: bool
    id_label: int
    group_label: int
    contents: dict[str, tuple[int, int]]

    @property
    def payload(self) -> JsonObject:
        """The metadata to store with the vector, plus the item's group under "group".

        A metadata column that is itself named "group" is stored under GROUP_COLUMN.
        """
        payload = {GROUP_COLUMN if k == "group" else k: v for k, v in self.meta.items()}
        return payload if self.group is None else {"group": self.group, **payload}


def split_payload(payload: Mapping[str, object]) -> tuple[str | None, JsonObject]:
    """Split the payload of a store into (group, metadata)."""
    group = payload.get("group")
    meta = {"group" if k == GROUP_COLUMN else k: v for k, v in payload.items() if k != "group"}
    return None if group is None else str(group), meta


class ContentReplaced(DataError):
    """Raised when an item's content was replaced or deleted by another process after the item was read."""


@dataclass(slots=True)
class ChangeCounts:
    """The number of items that an upsert inserted, replaced, and found identical.

    kept: items of the catalog that are not in the packed data.
    deleted: items that `prune` deleted.
    """

    new: int = 0
    changed: int = 0
    same: int = 0
    kept: int = 0
    deleted: int = 0


class Catalog:
    """The items of a collection. Each thread has its own database connection; writers must hold the write lock."""

    def __init__(self, directory: Path):
        self.path = directory / "items.sqlite"
        directory.mkdir(parents=True, exist_ok=True)
        self._local = threading.local()
        self._sources: dict[int, tuple[Data, dict[str, int]]] = {}
        self._guard = threading.Lock()
        with self._db() as db:
            if db.execute("select count(*) from sqlite_master where name = 'state'").fetchone()[0] == 0:
                db.executescript(SCHEMA)
            if not db.execute("select 1 from state where name = 'columns'").fetchone():
                db.executescript(COLUMNS_SCHEMA)
            if not db.execute("select 1 from sqlite_master where name = 'content_label'").fetchone():
                db.execute(CONTENT_INDEX)

    def _db(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            try:
                db = sqlite3.connect(self.path, timeout=60)
                db.execute("pragma journal_mode = wal")
                db.execute("pragma synchronous = full")
            except sqlite3.DatabaseError as e:
                raise DataError(f"{self.path}: the catalog cannot be opened ({e}); it must be a writable SQLite file") from None
            self._local.db = db
        return db

    def connection(self) -> sqlite3.Connection:
        """Return the database connection of this thread, for `mmtune.index.maintenance`."""
        return self._db()

    def close(self) -> None:
        """Close the database connection of this thread."""
        db = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def seq(self) -> int:
        """The sequence number of the last change."""
        row = self._db().execute("select value from state where name = 'seq'").fetchone()
        return int(row[0]) if row else 0

    def __len__(self) -> int:
        return int(self._db().execute("select count(*) from items where deleted = 0").fetchone()[0])

    def changed(self, since: int, until: int | None = None) -> Iterator[list[Item]]:
        """Yield, in chunks, the items whose last change has a sequence number > `since` and <= `until`, oldest change first.

        Tombstones are included, except for since=0, which means all items.
        """
        query = f"select {ITEM_COLUMNS} from items where seq > ? and seq <= ?"
        query += " and deleted = 0" if since == 0 else ""
        cursor = self._db().execute(query + " order by seq, rowid", (since, until if until is not None else NO_LIMIT))
        while rows := cursor.fetchmany(CHUNK):
            yield self._items(rows)

    def items(self, ids: Sequence[str]) -> dict[str, Item]:
        """Return {id: item} for those of `ids` that exist and are not deleted."""
        out = {}
        for start in range(0, len(ids), CHUNK):
            part = ids[start : start + CHUNK]
            marks = ",".join("?" * len(part))
            query = f"select {ITEM_COLUMNS} from items where deleted = 0 and id in ({marks})"
            out.update({i.id: i for i in self._items(self._db().execute(query, part).fetchall())})
        return out

    def _items(self, rows: list[tuple[str, str | None, str, int, int, int]]) -> list[Item]:
        marks = ",".join("?" * len(rows))
        query = f"select id, modality, label, source from content where id in ({marks})"
        contents: dict[str, dict[str, tuple[int, int]]] = {}
        for id, modality, content_label, source in self._db().execute(query, [r[0] for r in rows]):
            contents.setdefault(id, {})[modality] = (content_label, source)
        return [Item(r[0], r[1], json.loads(r[2]), bool(r[3]), r[4], r[5], contents.get(r[0], {})) for r in rows]

    def sample(self, modality: str, count: int, until: int = NO_LIMIT) -> list[Item]:
        """Return a deterministic pseudo-random sample of up to `count` items that have the modality.

        Only items whose last change has a sequence number <= `until` are sampled. The sample is the items with the lowest
        content hashes.
        """
        query = "select c.id from content c join items i on i.id = c.id where c.modality = ? and i.seq <= ?"
        query += " order by c.label limit ?"
        ids = [r[0] for r in self._db().execute(query, (modality, until, count))]
        return list(self.items(ids).values())

    def count(self, modalities: Sequence[str]) -> int:
        """Return the number of items that have at least one of these modalities."""
        marks = ",".join("?" * len(modalities))
        query = f"select count(distinct id) from content where modality in ({marks})"
        return int(self._db().execute(query, list(modalities)).fetchone()[0])

    def counts(self) -> dict[str, int]:
        """Return {modality: number of items that have it}."""
        return dict(self._db().execute("select modality, count(*) from content group by modality order by modality"))

    def changes(self, since: int, modality: str) -> int:
        """Return how many items that have the modality were changed after the sequence number `since`."""
        query = "select count(*) from items i join content c on c.id = i.id where i.seq > ? and c.modality = ?"
        return int(self._db().execute(query, (since, modality)).fetchone()[0])

    def columns(self) -> dict[str, set[str]]:
        """Return {column: kinds of its values (`filters.value_kind`)} for every column that a filter can name.

        "group" is included if any item has a group.
        """
        kinds: dict[str, set[str]] = {}
        for name, kind in self._db().execute("select name, kind from columns"):
            kinds.setdefault(GROUP_COLUMN if name == "group" else name, set()).update({kind} - {""})
        if self._db().execute("select 1 from items where deleted = 0 and grp is not null limit 1").fetchone():
            kinds["group"] = {"s"}
        return kinds

    def _source(self, source: int) -> tuple[Data, dict[str, int]]:
        """Open the shards of a source (once); return them, and the row number of every id."""
        with self._guard:
            if source not in self._sources:
                row = self._db().execute("select shards from sources where number = ?", (source,)).fetchone()
                data = open_data(json.loads(row[0]))
                self._sources[source] = (data, {name: i for i, name in enumerate(data.ids)})
            return self._sources[source]

    def locate(self, item: Item, modality: str) -> tuple[Data, int]:
        """Return (shards, row number) of an item's content.

        Raises DataError when the shards hold other content than when the item was upserted.
        """
        content_label, source = item.contents[modality]
        data, rows = self._source(source)
        row = rows.get(item.id)
        if row is None or modality not in data.labels or int(data.labels[modality][row]) != content_label:
            raise DataError(
                f"{data.spec}: {modality} of item {item.id!r} is not what the collection read there; the data changed, so "
                "update the collection with `mmtune index upsert COLLECTION --data DATA`"
            )
        return data, row

    def read(self, item: Item, modality: str) -> bytes:
        """Return the content of an item, as bytes. Raises KeyError when the item does not have the modality."""
        content_label, source = item.contents[modality]
        if source == STORED_HERE:
            query = "select data from blobs where modality = ? and label = ?"
            found = self._db().execute(query, (modality, content_label)).fetchone()
            if found is None:
                raise ContentReplaced(
                    f"{modality} of item {item.id!r} was replaced or deleted meanwhile; run the command again"
                )
            return bytes(found[0])
        data, row = self.locate(item, modality)
        return data.read(row, modality)

    # --- writing -------------------------------------------------------------------------------------------------

    def upsert_data(self, data: Data, prune: bool = False) -> ChangeCounts:
        """Insert or replace the rows of packed data. prune: delete the items that are not in `data`."""
        names = sorted({s.url if "://" in s.url else os.path.abspath(s.url) for s in data.shards})
        with self._db() as db:
            db.execute("begin immediate")
            db.execute("insert or ignore into sources(shards) values (?)", (json.dumps(names),))
            source = db.execute("select number from sources where shards = ?", (json.dumps(names),)).fetchone()[0]
            seq = self._next_seq(db)
            counts = ChangeCounts()
            for start in range(0, len(data), CHUNK):
                rows = range(start, min(len(data), start + CHUNK))
                self._upsert([_item_of(data, i, source) for i in rows], seq, counts)
            if prune:
                present = set(data.ids)
                absent = [r[0] for r in db.execute("select id from items where deleted = 0") if r[0] not in present]
                self._bury(db, absent, seq)
                counts.deleted = len(absent)
            counts.kept = len(self) - len(data)
        with self._guard:
            self._sources.pop(source, None)  # reopen the shards: they may have been packed again under the same names
        return counts

    def upsert_rows(self, rows: Iterable[Row]) -> tuple[ChangeCounts, list[RejectedItem]]:
        """Insert or replace rows and store their content; return (counts, rejected rows)."""
        counts, rejected, items = ChangeCounts(), list[RejectedItem](), list[Item]()
        blobs: list[tuple[str, int, bytes]] = []
        for row in rows:
            try:
                labels = content_labels(row)
            except Rejected as e:
                rejected.append(RejectedItem(row.id, str(e)))
                continue
            blobs += [(m, content_label, row.values[m]) for m, content_label in labels.items()]
            group_label = stable_label(row.group.encode("utf-8", "replace")) if row.group else 0
            contents = {m: (content_label, STORED_HERE) for m, content_label in labels.items()}
            id_label = stable_label(row.id.encode("utf-8", "replace"))
            items.append(Item(row.id, row.group, dict(row.meta), False, id_label, group_label, contents))
        with self._db() as db:
            db.execute("begin immediate")
            db.executemany("insert or ignore into blobs values (?, ?, ?)", blobs)
            seq = self._next_seq(db)
            for start in range(0, len(items), CHUNK):
                self._upsert(items[start : start + CHUNK], seq, counts)
        return counts, rejected

    def delete(self, ids: Sequence[str]) -> int:
        """Delete items by id and return how many of them existed."""
        with self._db() as db:
            db.execute("begin immediate")
            existing = list(self.items(list(dict.fromkeys(ids))))
            self._bury(db, existing, self._next_seq(db))
        return len(existing)

    def _next_seq(self, db: sqlite3.Connection) -> int:
        db.execute("insert into state values ('seq', 1) on conflict(name) do update set value = value + 1")
        return self.seq

    def _upsert(self, items: list[Item], seq: int, counts: ChangeCounts) -> None:
        db, known = self._db(), self.items([i.id for i in items])
        if len({i.id for i in items}) < len(items):
            twice = next(i.id for n, i in enumerate(items) if i.id in {x.id for x in items[:n]})
            raise DataError(f"the id {twice!r} occurs twice; ids must be unique")
        relocated: list[Item] = []
        for item in items:
            old = known.get(item.id)
            same = old is not None and _identity(old) == _identity(item)
            if same:
                counts.same += 1
            elif old is not None:
                counts.changed += 1
            else:
                counts.new += 1
            if not same:
                values = (item.id, item.group, _dump(item.meta), seq, 0, item.id_label, item.group_label)
                db.execute("insert or replace into items values (?, ?, ?, ?, ?, ?, ?)", values)
            if not same or old is not None and old.contents != item.contents:
                relocated.append(item)  # also when only the source changed: nothing is embedded, but reads use the new source
        kinds = {(name, value_kind(value) or "") for i in items for name, value in i.meta.items()}
        db.executemany("insert or ignore into columns values (?, ?)", sorted(kinds))
        db.executemany("delete from content where id = ?", [(i.id,) for i in relocated])
        lines = [(i.id, m, content_label, source) for i in relocated for m, (content_label, source) in i.contents.items()]
        db.executemany("insert into content values (?, ?, ?, ?)", lines)
        self._collect_blobs(db, [old for i in relocated if i.id in known for old in known[i.id].contents.items()])

    def _bury(self, db: sqlite3.Connection, ids: Sequence[str], seq: int) -> None:
        """Turn items into tombstones."""
        db.executemany("update items set deleted = 1, seq = ? where id = ?", [(seq, i) for i in ids])
        had = [old for start in range(0, len(ids), CHUNK) for old in self._contents(db, ids[start : start + CHUNK])]
        db.executemany("delete from content where id = ?", [(i,) for i in ids])
        self._collect_blobs(db, had)

    def _contents(self, db: sqlite3.Connection, ids: Sequence[str]) -> list[tuple[str, tuple[int, int]]]:
        query = f"select modality, label, source from content where id in ({','.join('?' * len(ids))})"
        return [(m, (content_label, source)) for m, content_label, source in db.execute(query, list(ids))]

    def _collect_blobs(self, db: sqlite3.Connection, contents: Sequence[tuple[str, tuple[int, int]]]) -> None:
        """Delete those of these contents that are stored here and that no item has any more."""
        unused = "not exists (select 1 from content c where c.label = blobs.label and c.modality = blobs.modality)"
        stored = {(m, content_label) for m, (content_label, source) in contents if source == STORED_HERE}
        db.executemany(f"delete from blobs where modality = ? and label = ? and {unused}", sorted(stored))


def _dump(meta: JsonObject) -> str:
    return json.dumps(meta, sort_keys=True, ensure_ascii=False)


def _identity(item: Item) -> tuple[str | None, str, int, dict[str, int]]:
    """Return everything that decides whether an item has changed: all but the source that stores its content."""
    labels = {m: content_label for m, (content_label, _) in item.contents.items()}
    return item.group, _dump(item.meta), item.id_label, labels


def _item_of(data: Data, i: int, source: int) -> Item:
    contents = {m: (int(data.labels[m][i]), source) for m in data.modalities if data.present[m][i]}
    labels = int(data.labels["id"][i]), int(data.labels["group"][i])
    check_id(data.ids[i], data.spec)
    meta = plain_metadata(data.meta(i), f"{data.spec}: id {data.ids[i]!r}")
    return Item(data.ids[i], data.groups[i], meta, False, *labels, contents)


def labels_of(items: Sequence[Item], modality: str) -> np.ndarray:
    """Return the content hashes, int64 [N], of items that all have the modality."""
    return np.array([i.contents[modality][0] for i in items], np.int64)
