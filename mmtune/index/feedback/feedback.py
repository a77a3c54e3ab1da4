"""Clicks and "not a match" marks, COLL/feedback.jsonl; exported as rows and judgments for evaluation and mining.

A query's content is kept when somebody says something about its answer, not before: COLL/feedback/ID.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from mmtune import modalities
from mmtune.errors import DataError
from mmtune.index.catalog import Catalog, Item
from mmtune.index.layout import now
from mmtune.runtime.files import append_jsonl, read_jsonl_log, write_bytes, write_jsonl

KINDS = {"click": "positive", "match": "positive", "not_a_match": "negative"}
REMEMBERED = 64 * 2**20  # bytes of recent queries that are held until somebody says something about them
LINKS = 10_000


class FeedbackLog:
    """The log of one collection. Appends are single writes: any number of processes."""

    def __init__(self, path: Path):
        self.path, self.log = path / "feedback", path / "feedback.jsonl"
        self._recent: OrderedDict[str, tuple[str, bytes]] = OrderedDict()
        self._links: OrderedDict[str, str] = OrderedDict()
        self._bytes, self._guard = 0, Lock()

    def remember(self, modality: str, data: bytes, mark: int) -> str:
        """The id of a query by its content; its bytes are held for a while."""
        name = f"q-{modality}-{mark:016x}"
        with self._guard:
            if name not in self._recent:
                self._recent[name] = (modality, data)
                self._bytes += len(data)
                while self._bytes > REMEMBERED and len(self._recent) > 1:
                    self._bytes -= len(self._recent.popitem(last=False)[1][1])
        return name

    def link(self, impression: str, query: str) -> None:
        """An interleaved answer's id stands for that query."""
        with self._guard:
            if query in self._recent:
                self._links[impression] = query
                while len(self._links) > LINKS:
                    self._links.popitem(last=False)

    def add(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Record one event; DataError for one that is not {"query", "item", "kind"}. An answer of another process: hand over
        the query with it, as "modality" and "value" (bytes, or a string)."""
        query, item, kind = event.get("query"), event.get("item"), event.get("kind")
        if not isinstance(query, str) or not isinstance(item, str) or not query or not item or kind not in KINDS:
            raise DataError(f'feedback: needs "query" and "item" (ids) and "kind", one of {", ".join(KINDS)}')
        with self._guard:
            origin = self._links.get(query, query)
            modality, data = self._recent.get(origin, (event.get("modality"), event.get("value")))
        if modality is not None and data is not None:
            modalities.get(modality)
            path = self.path / hashlib.sha256(origin.encode()).hexdigest()[:32]
            if not path.exists():
                write_bytes(path, data.encode() if isinstance(data, str) else data)
        more = {k: v for k, v in event.items() if isinstance(v, str | int | float | bool) and k not in ("value", "modality")}
        line = {"at": now(), **more, "modality": modality} | ({"origin": origin} if origin != query else {})
        append_jsonl(self.log, line)
        return line

    def events(self) -> list[dict[str, Any]]:
        """Every event, oldest first."""
        return read_jsonl_log(self.log)

    def verdicts(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(query, item) -> {"verdict", "clicks", "modality"}: the last mark counts; a click is a weak yes that any mark
        outweighs."""
        out: dict[tuple[str, str], dict[str, Any]] = {}
        for event in self.events():
            said = out.setdefault((event.get("origin") or event["query"], event["item"]), {"clicks": 0, "mark": None})
            said["modality"] = event.get("modality")
            if event["kind"] == "click":
                said["clicks"] += 1
            else:
                said["mark"] = KINDS[event["kind"]]
        return {pair: {**said, "verdict": said["mark"] or "positive"} for pair, said in out.items()}

    def export(self, catalog: Catalog, out: Path) -> dict[str, Any]:
        """What people said, for the next round.

        OUT/judgments.jsonl: a verdict a line, as `eval --qrels` and `mine --judgments` read it. OUT/data: packed shards with
        the queries and the items that it is about. OUT/pairs, to train on, where somebody said yes to a query's value: a row
        for each, the value beside the item's of other modalities, under the query's id and the item's group; and the items
        that somebody said no to. Verdicts whose query or item is not known any more are counted as unused.
        """
        verdicts = self.verdicts()
        items = catalog.items(list(dict.fromkeys(name for pair in verdicts for name in pair)))
        rows: dict[str, dict[str, Any]] = {}
        pairs: dict[str, dict[str, Any]] = {}
        lines, unused, learnt = [], 0, False
        for (query, item), said in verdicts.items():
            content = self.path / hashlib.sha256(query.encode()).hexdigest()[:32]
            asked = query in items or said["modality"] and content.exists()
            if not asked or item not in items:
                unused += 1
                continue
            if query not in items:
                rows[query] = {"id": query} | self._cell(out, query, said["modality"], content.read_bytes())
            for name in (n for n in (query, item) if n in items):
                rows.setdefault(name, self._row(out, catalog, items[name]))
            lines.append({"query_id": query, "item_id": item, "verdict": said["verdict"], "clicks": said["clicks"]})
            if said["verdict"] == "negative":
                pairs.setdefault(item, rows[item])
            elif query not in items and set(items[item].contents) - {said["modality"]}:
                name = query if query not in pairs else f"{query} {item}"
                pairs[name] = {**rows[item], **rows[query], "id": name}
                learnt = True
        if not lines:
            raise DataError(f"{self.log}: no verdict on a query and an item that are known")
        write_jsonl(out / "judgments.jsonl", lines)
        told = {"judgments": str(out / "judgments.jsonl"), "data": _packed(out, "data", rows), "pairs": None}
        if learnt:
            told["pairs"] = _packed(out, "pairs", pairs)
        return {**told, "verdicts": len(lines), "unused": unused}

    def _row(self, out: Path, catalog: Catalog, item: Item) -> dict[str, Any]:
        row: dict[str, Any] = {**item.meta, "id": item.id, "group": item.group}
        for m in item.contents:
            row |= self._cell(out, item.id, m, catalog.read(item, m))
        return row

    def _cell(self, out: Path, name: str, modality: str, data: bytes) -> dict[str, str]:
        """The source's cell for a value: itself where it is inline, else a file beside the table."""
        kind = modalities.get(modality)
        if kind.inline:
            return {modality: data.decode("utf-8", "replace")}
        path = f"files/{hashlib.sha256(name.encode()).hexdigest()[:24]}.{kind.extensions[0]}"
        write_bytes(out / path, data)
        return {modality: path}


def _packed(out: Path, name: str, rows: Mapping[str, dict[str, Any]]) -> str:
    """Rows as shards in OUT/name."""
    from mmtune.data.pack.pack import pack

    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    table = out / f"{name}.jsonl"
    write_jsonl(table, ({c: row.get(c) for c in columns} for row in rows.values()))
    pack(table, out / name, overwrite=True)
    return str(out / name)
