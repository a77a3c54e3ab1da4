"""Log clicks and explicit judgments of search results, and export them as judgments and data for evaluation and mining.

Events are appended to COLL/feedback.jsonl, which is divided into segments (`SegmentedLog`): the last LOG_BYTES * (LOG_SEGMENTS + 1), 1 GB
or about five million events, are kept. The content of a query is saved, in COLL/feedback/, only when there is feedback on its
results.
"""

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from mmtune import modalities
from mmtune.contracts import JsonObject
from mmtune.errors import DataError
from mmtune.index.collection_layout import now
from mmtune.index.collection_results import FeedbackExport
from mmtune.index.item_catalog import Catalog, Item
from mmtune.runtime.files import read_jsonl_log, write_bytes, write_jsonl
from mmtune.runtime.segmented_log import SegmentedLog

VERDICT_OF = {"click": "positive", "match": "positive", "not_a_match": "negative"}
"""{kind of feedback: verdict}."""
REMEMBERED_BYTES = 64 * 2**20
"""Most bytes of recent queries' content that are held in memory, to be saved when there is feedback on them."""
LOG_BYTES, LOG_SEGMENTS = 64 << 20, 15
"""Size at which the log starts a new segment, and number of segments that are kept."""
MAX_LINKS = 10_000
"""Most interleaved responses whose query is remembered."""


@dataclass(slots=True)
class PairFeedback:
    """All feedback on one (query, item) pair.

    clicks: number of clicks.
    mark: verdict of the last explicit judgment ("match" or "not_a_match"); None when there are only clicks.
    modality: modality of the query.
    """

    clicks: int = 0
    mark: str | None = None
    modality: str | None = None

    @property
    def verdict(self) -> str:
        """ "positive" or "negative". An explicit judgment overrides clicks, which count as positive."""
        return self.mark or "positive"


class FeedbackLog:
    """The feedback log of one collection. An event is appended by a single write, so any number of processes may append.

    spool: directory in which processes share the contents of their recent queries, because feedback may be sent to another process
        than the one that searched; None means that each process knows its own queries only.
    """

    def __init__(self, path: Path, spool: Path | None = None):
        self.path, self.log, self.spool = path / "feedback", path / "feedback.jsonl", spool
        self._segments = SegmentedLog(self.log, LOG_BYTES, LOG_SEGMENTS, self._drop_contents)
        self._recent: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._links: OrderedDict[str, str] = OrderedDict()
        self._bytes, self._guard = 0, Lock()

    def remember(self, modality: str, data: bytes, label: int) -> str:
        """Return the id of a query, made from its content hash `label`, and hold its content in memory for later feedback."""
        query = f"q-{modality}-{label:016x}"
        with self._guard:
            if query not in self._recent:
                self._recent[query] = (modality, data)
                self._bytes += len(data)
                self._share(query, modality.encode() + b"\n" + data)
                while self._bytes > REMEMBERED_BYTES and len(self._recent) > 1:
                    forgotten, (_, content) = self._recent.popitem(last=False)
                    self._bytes -= len(content)
                    self._unshare(forgotten)
        return query

    def _shared(self, name: str) -> Path | None:
        return None if self.spool is None else self.spool / hashlib.sha256(name.encode()).hexdigest()[:32]

    def _share(self, name: str, data: bytes) -> None:
        if path := self._shared(name):
            with contextlib.suppress(OSError):  # a full disk costs the content of feedback, and no search
                write_bytes(path, data)

    def _unshare(self, name: str) -> None:
        if path := self._shared(name):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _received(self, name: str) -> bytes | None:
        """Return what another process shared under a name."""
        path = self._shared(name)
        try:
            return None if path is None else path.read_bytes()
        except OSError:
            return None

    def _origin(self, query: str) -> tuple[str, tuple[object, object]]:
        """Return (query id, (modality, content)) of a query or an interleaved response; (None, None) if it is not known."""
        with self._guard:
            origin = self._links.get(query) or (self._received("link " + query) or query.encode()).decode()
            known = self._recent.get(origin)
        if known is None and (shared := self._received(origin)) is not None:
            modality, _, data = shared.partition(b"\n")
            known = (modality.decode(), data)
        return origin, known or (None, None)

    def link(self, impression: str, query: str) -> None:
        """Count feedback on an interleaved response (`impression`) as feedback on `query`."""
        with self._guard:
            if query in self._recent:
                self._links[impression] = query
                self._share("link " + impression, query.encode())
                while len(self._links) > MAX_LINKS:
                    self._unshare("link " + self._links.popitem(last=False)[0])

    def add(self, event: Mapping[str, object]) -> JsonObject:
        """Log one event and return the logged line.

        event: {"query": query id, "item": item id, "kind": "click", "match" or "not_a_match"}. If another process ran the
            search, add the content of the query: "modality" and "value" (bytes, or a string).

        Raises DataError when "query", "item" or a known "kind" is missing.
        """
        query, item, kind = event.get("query"), event.get("item"), event.get("kind")
        if not isinstance(query, str) or not isinstance(item, str) or not query or not item or kind not in VERDICT_OF:
            raise DataError(
                f'feedback: needs "query" (the id in a response), "item" (an item id) and "kind", one of {", ".join(VERDICT_OF)}'
            )
        origin, (modality, data) = self._origin(query)
        if modality is None:
            modality, data = event.get("modality"), event.get("value")
        if isinstance(modality, str) and isinstance(data, bytes | str):
            modalities.get(modality)
            path = self._content(origin)
            if not path.exists():
                write_bytes(path, data.encode() if isinstance(data, str) else data)
        more = {k: v for k, v in event.items() if isinstance(v, str | int | float | bool) and k not in ("value", "modality")}
        line = {"at": now(), **more, "modality": modality} | ({"origin": origin} if origin != query else {})
        self._segments.append(line)
        return line

    def _drop_contents(self, oldest: Path) -> None:
        """Delete the contents of the queries that only the oldest segment of the log names, because it is about to be deleted."""
        gone = {_origin_of(e) for e in read_jsonl_log(oldest)}
        first = oldest.stat().st_size
        left = sum(p.stat().st_size for p in self._segments.files()) - first
        for query in gone - {_origin_of(e) for e in self._segments.read(left)}:
            self._content(query).unlink(missing_ok=True)

    def _content(self, query: str) -> Path:
        """Return the path of a query's saved content."""
        return self.path / hashlib.sha256(query.encode()).hexdigest()[:32]

    def events(self, last_bytes: int | None = None) -> list[JsonObject]:
        """Return all events, oldest first; or those in the last `last_bytes` bytes of the log."""
        return self._segments.read(last_bytes)

    def pairs(self) -> dict[tuple[str, str], PairFeedback]:
        """Return {(query id, item id): all feedback on that pair}."""
        out: dict[tuple[str, str], PairFeedback] = {}
        for event in self.events():
            pair = out.setdefault((_origin_of(event), event["item"]), PairFeedback())
            pair.modality = event.get("modality")
            if event["kind"] == "click":
                pair.clicks += 1
            else:
                pair.mark = VERDICT_OF[event["kind"]]
        return out

    def export(self, catalog: Catalog, out: Path) -> FeedbackExport:
        """Export the feedback to directory `out`, for evaluation and for the next round of training.

            OUT/judgments.jsonl   one judgment per line, as `mmtune eval --qrels` and `mmtune mine --judgments` read them
            OUT/data              packed shards with the judged queries and items
            OUT/pairs             packed shards to train on, if any query with saved content has a positive item

        A row of OUT/pairs combines the content of a query with the other modalities of a positive item. It has the id of the
        query and the group of the item. The items with negative judgments are also rows of OUT/pairs, as negatives.

        Judgments whose query or item is unknown are counted as unused. Raises DataError when no judgment can be exported.
        """
        feedback = self.pairs()
        items = catalog.items(list(dict.fromkeys(id for pair in feedback for id in pair)))
        rows: dict[str, JsonObject] = {}
        pairs: dict[str, JsonObject] = {}
        lines, unused, positives = [], 0, False
        for (query, item), pair in feedback.items():
            content = self._content(query)
            stored = query not in items and pair.modality is not None and content.exists()
            if item not in items or not (query in items or stored):
                unused += 1
                continue
            if pair.modality is not None and stored:
                rows[query] = {"id": query} | _cell(out, query, pair.modality, content.read_bytes())
            for id in (i for i in (query, item) if i in items):
                rows.setdefault(id, _row(out, catalog, items[id]))
            lines.append({"query_id": query, "item_id": item, "verdict": pair.verdict, "clicks": pair.clicks})
            if pair.verdict == "negative":
                pairs.setdefault(item, rows[item])
            elif query not in items and set(items[item].contents) - {pair.modality}:
                name = query if query not in pairs else f"{query} {item}"
                pairs[name] = {**rows[item], **rows[query], "id": name}
                positives = True
        if not lines:
            raise DataError(f"{self.log}: no judgment to export: there is no feedback on a known query and a known item")
        judgments = out / "judgments.jsonl"
        write_jsonl(judgments, lines)
        data = _pack(out, "data", rows)
        return FeedbackExport(str(judgments), data, _pack(out, "pairs", pairs) if positives else None, len(lines), unused)


def _origin_of(event: JsonObject) -> str:
    """Return the id of the query that an event is about, also for an event on an interleaved response."""
    return str(event.get("origin") or event["query"])


def _row(out: Path, catalog: Catalog, item: Item) -> JsonObject:
    """Return a row of the source table for an item; contents that are not text are written to files."""
    row: JsonObject = {**item.meta, "id": item.id, "group": item.group}
    for m in item.contents:
        row |= _cell(out, item.id, m, catalog.read(item, m))
    return row


def _cell(out: Path, id: str, modality: str, data: bytes) -> dict[str, str]:
    """Return {modality: cell of the source table}: the text itself, or the path of a file that the content is written to."""
    kind = modalities.get(modality)
    if kind.inline:
        return {modality: data.decode("utf-8", "replace")}
    path = f"files/{hashlib.sha256(id.encode()).hexdigest()[:24]}.{kind.extensions[0]}"
    write_bytes(out / path, data)
    return {modality: path}


def _pack(out: Path, name: str, rows: Mapping[str, JsonObject]) -> str:
    """Pack rows as shards in the directory OUT/`name`, and return its path."""
    from mmtune.data.pack.pack import pack

    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    table = out / f"{name}.jsonl"
    write_jsonl(table, ({c: row.get(c) for c in columns} for row in rows.values()))
    pack(table, out / name, overwrite=True)
    return str(out / name)
