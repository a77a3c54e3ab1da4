"""What REST and the page both do: search, look at an item, change one, say something about an answer."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from mmtune import modalities
from mmtune.contracts import Row
from mmtune.errors import DataError, MissingExtra, MmtuneError, ModelError, Rejected
from mmtune.index.feedback.interleave import rivals, show
from mmtune.index.open_version import decode_query
from mmtune.index.query.filters import encodable, parse
from mmtune.index.query.query import Query
from mmtune.index.stores.store_rows import ID_BYTES, check_id, plain
from mmtune.serve.batcher import Batcher
from mmtune.serve.error_responses import Refusal, invalid, too_many
from mmtune.serve.live_versions import Served
from mmtune.serve.memory_limit import Budget
from mmtune.serve.prometheus import Metrics
from mmtune.serve.request import Body, Search, admitted
from mmtune.serve.settings import Settings

if TYPE_CHECKING:
    import anyio

    from mmtune.index.catalog import Item
    from mmtune.index.open_version import OpenVersion
    from mmtune.index.protocols import SearchResponse

T = TypeVar("T")
log = logging.getLogger("mmtune.serve")
SMALL = 2**23  # bytes that a value may take decoded without waiting for its turn
CODES = {404: "not_found", 409: "conflict", 422: "invalid", 503: "not_open"}


class Service:
    """One collection, its limits and its counters. Methods without `async` block, and run in threads."""

    def __init__(self, collection: Served, settings: Settings, metrics: Metrics):
        self.collection, self.settings, self.metrics = collection, settings, metrics
        self._under_way = 0
        self.batcher = Batcher(self._batch, settings.window, settings.batch, metrics.observe_batch)
        self.batcher.expected = lambda: self._under_way
        self.budget = Budget(settings.limits.max_decoded)
        self._threads: anyio.CapacityLimiter | None = None
        self._random = random.Random()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among those under way, or Refusal 429. On the event loop only: nothing comes between look and take."""
        most = self.settings.limits.max_concurrent
        if self._under_way >= most:
            raise too_many(most)
        self._under_way += 1
        self.metrics.under_way.set(self._under_way)
        try:
            yield
        finally:
            self._under_way -= 1
            self.metrics.under_way.set(self._under_way)

    async def thread(self, function: Callable[..., T], *args: Any) -> T:
        """Run what blocks in a thread; there are as many as there are places."""
        import anyio

        if self._threads is None:
            self._threads = anyio.CapacityLimiter(self.settings.limits.max_concurrent + 8)
        return await anyio.to_thread.run_sync(function, *args, limiter=self._threads)

    # --- searching -----------------------------------------------------------------------------------------------

    async def search(self, asked: Search) -> dict[str, Any]:
        """The document of an answer. Refusal: 404 for an unknown version or item, 422 for a value, filter or name that cannot
        be used, 503 while nothing is live or the version does not open."""
        if asked.modality is None or modalities.get(asked.modality).language:
            return await self._found(asked, self._admit(asked)[1] or self._ask(asked))
        size, ask = await self.thread(self._admit, asked)
        async with self.budget.hold(size):
            if ask is None:
                ask = await self.thread(self._ask, asked)
            return await self._found(asked, ask)

    async def _found(self, asked: Search, ask: Query) -> dict[str, Any]:
        if asked.interleave:
            return await self._interleaved(asked.interleave, ask)
        plain = asked.version in (None, "", "live")
        return await self._answer(None if plain else await self.thread(self.version, asked.version), ask)

    async def _interleaved(self, wanted: str, ask: Query) -> dict[str, Any]:
        """One list of live and another version; its "query" is the impression that clicks are about."""

        def rival() -> dict[str, str]:
            with refusing(422):
                return rivals(self.collection, self.version(wanted) or "live")

        versions = await self.thread(rival)
        found = await asyncio.gather(*(self._answer(name, ask) for name in versions.values()))
        results = {team: one["results"] for team, one in zip(versions, found, strict=True)}
        shown = await self.thread(show, self.collection, versions, results, found[0]["query"], ask.k, self._random)
        more = {"seconds": max(one["seconds"] for one in found), "results": shown[1]}
        return {"version": "|".join(versions.values()), "fingerprint": "", "query": shown[0], **more}

    def _admit(self, asked: Search) -> tuple[int, Query | None]:
        """(bytes of memory that decoding takes, what is asked, where that is little enough to be decoded at once)."""
        size = admitted(asked.modality, asked.data, self.settings.limits) if asked.modality else 0
        return size, self._ask(asked) if size <= SMALL else None

    def _ask(self, asked: Search) -> Query:
        """Decoded and checked, as far as that goes without the version. Refusal 422."""
        name = asked.modality or ""
        with refusing(422):
            where = parse(asked.filter) if asked.filter else None
            content = decode_query(name, asked.data) if name else None
        return Query(name, content, asked.item, asked.k, where, asked.target, asked.hybrid and not asked.item, asked.per)

    async def _answer(self, version: str | None, ask: Query) -> dict[str, Any]:
        """With others, where that is quick; alone, in a thread of its own, where words of all items or a version come first."""
        found = None if ask.alone else await self.batcher.submit(version, ask)
        if found is None:
            (found,) = await self.thread(self._answers, version, [ask])
        if isinstance(found, Refusal):
            raise found
        return found

    def _batch(self, version: str | None, asks: list[Query]) -> Sequence[Any]:
        """`_answers`, or None for each while the version is not open: others are not to wait for that."""
        with refusing(503):
            name = version or self.collection.live
        return self._answers(version, asks) if name is None or name in self.collection.open_versions else [None] * len(asks)

    def _answers(self, version: str | None, asks: list[Query]) -> list[Any]:
        """The document of each, or its Refusal."""
        opened = self.opened(version)
        known = self.items([a.item for a in asks if a.item is not None])
        out: list[Any] = [self._unanswerable(opened, a, known) for a in asks]
        todo = [n for n, no in enumerate(out) if no is None]
        found = self.collection.search_many([asks[n] for n in todo], version)
        items = self.items(list({r["id"] for a in found if not isinstance(a, MmtuneError) for r in a.results}))
        for n, answer in zip(todo, found, strict=True):
            if isinstance(answer, MmtuneError):
                out[n] = refusal(answer, 422)
                continue
            self.metrics.searches.labels(answer.version, asks[n].name or "item").inc()
            if not answer.results:
                self.metrics.empty.labels(answer.version).inc()
            out[n] = document(answer, items)
        return out

    def _unanswerable(self, opened: "OpenVersion", ask: Query, known: "dict[str, Item]") -> Refusal | None:
        if ask.item is not None and ask.item not in known:
            return Refusal(404, "no_item", f"no item {ask.item[:200]!r}")
        if ask.item is None and ask.name not in opened.model.towers:
            able = ", ".join([*opened.model.towers, "item"])
            return invalid(f"version {opened.version} cannot be asked by {ask.name}; it takes {able}")
        return None

    def version(self, wanted: str | None) -> str | None:
        """None for whoever is live, else a version's name. Refusal 404."""
        try:
            version = self.collection.resolve(wanted)
            if version is not None:
                self.collection.layout.record(version)
        except (ModelError, DataError) as e:
            raise Refusal(404, "no_version", without_paths(e)) from None
        return version

    def opened(self, version: str | None) -> "OpenVersion":
        """The version, open. Refusal 503: the reason goes to the log, where it may name files of this machine."""
        try:
            return self.collection.open(version)
        except (MmtuneError, OSError) as e:
            if version is None and self.collection.live is None:
                raise Refusal(503, "not_live", "no version is live yet; `mmtune index promote` makes one") from None
            log.error("version %s does not open: %s", version or self.collection.live, e)
            told = f"version {version or 'live'} does not open; the server's log says why, and so does `mmtune index status`"
            raise Refusal(503, "not_open", told) from None

    # --- items ---------------------------------------------------------------------------------------------------

    def items(self, ids: Sequence[str]) -> "dict[str, Item]":
        """Those that there are."""
        return self.collection.catalog.items(ids)

    def item(self, id: str) -> dict[str, Any]:
        """An item's document. Refusal 404."""
        found = self.items([id]).get(id)
        if found is None:
            raise Refusal(404, "no_item", f"no item {id[:200]!r}")
        values = {m: address(id, m) for m in found.contents}
        return {"id": id, "group": found.group, "meta": found.meta, "values": values}

    def value(self, id: str, modality: str) -> tuple[bytes, str]:
        """(bytes, media type) of an item's own value. Refusal 404; 410 where its shards are gone or changed."""
        if modality not in modalities.names():
            raise Refusal(404, "no_value", f"no modality {modality[:80]!r}")
        try:
            data = self.collection.value(id, modality)
        except (DataError, OSError, KeyError) as e:
            log.error("%s of item %r cannot be read: %s", modality, id, e)
            raise Refusal(410, "gone", f"{modality} of item {id[:200]!r} is not where the collection found it") from None
        if data is None:
            raise Refusal(404, "no_value", f"item {id[:200]!r} has no {modality}")
        return data, modalities.get(modality).media_type(data)

    def put(self, id: str, body: Body) -> dict[str, Any]:
        """Insert or replace an item, in every version. {"id", "created", "behind"}."""
        unknown = [f for f in body.fields if f not in ("group", "meta")]
        if unknown:
            raise invalid(f"{unknown[0][:80]}: no such field; there are {', '.join([*modalities.names(), 'group', 'meta'])}")
        group, meta = body.fields.get("group") or None, body.fields.get("meta") or {}
        if isinstance(meta, str):
            import json

            try:
                meta = json.loads(meta)
            except (ValueError, RecursionError) as e:
                raise invalid(f"meta: not JSON: {str(e)[:200]}") from None
        if not isinstance(meta, dict) or not isinstance(group, str | None) or not encodable(group or ""):
            raise invalid("meta is a JSON object, group a string")
        if not body.values:
            raise invalid(f"an item needs a value: one of {', '.join(modalities.names())}")
        with refusing(422):
            check_id(id, "items")
            meta = plain(meta, "meta")
            for name, data in body.values.items():
                admitted(name, data, self.settings.limits)
                try:
                    modalities.get(name).check(data)
                except Rejected as e:
                    raise invalid(f"{name}: {e}", field=name) from None
        with refusing(409):
            done = self.collection.upsert([Row(id, group, body.values, meta)])
        if done["rejected"]:
            raise invalid(done["rejected"][0]["reason"])
        return {"id": id, "created": bool(done["new"]), "changed": bool(done["changed"]), "behind": self._told(done["behind"])}

    def delete(self, id: str) -> dict[str, Any]:
        """Remove an item from every version. Refusal 404."""
        if not self.items([id]):
            raise Refusal(404, "no_item", f"no item {id[:200]!r}")
        with refusing(409):
            done = self.collection.delete([id])
        return {"id": id, "deleted": bool(done["deleted"]), "behind": self._told(done["behind"])}

    def _told(self, behind: dict[str, str]) -> list[str]:
        for version, why in behind.items():
            log.error("version %s is behind: %s", version, why)
        return list(behind)

    # --- saying something ----------------------------------------------------------------------------------------

    def feedback(self, event: dict[str, Any]) -> dict[str, Any]:
        """Record {"query", "item", "kind"} and a few words more ("version", "rank"). Refusal 404, 422."""
        known = {k: event[k] for k in ("query", "item", "kind", "version", "rank", "score", "page") if event.get(k) is not None}
        unknown = [k for k in event if k not in known and event[k] is not None]
        if unknown:
            raise invalid(f"feedback: no field {unknown[0][:80]!r}; give query, item, kind, and version, rank or score")
        words = [v for v in known.values() if isinstance(v, str)]
        if any(not encodable(w) or len(w.encode()) > ID_BYTES for w in words):
            raise invalid(f"feedback: a word of more than {ID_BYTES} bytes, or with half a character in it")
        if isinstance(known.get("item"), str) and not self.items([known["item"]]):
            raise Refusal(404, "no_item", f"no item {known['item'][:200]!r}")
        with refusing(422):
            line = self.collection.feedback(known)
        self.metrics.feedback.labels(line["kind"]).inc()
        return line

    # --- looking -------------------------------------------------------------------------------------------------

    def versions(self) -> dict[str, Any]:
        """Who is live, since when, and who waits."""
        pointer = self.collection.layout.live()
        out = []
        for v in self.collection.versions():
            shown = {k: v.get(k) for k in ("version", "fingerprint", "dim", "modalities", "items", "created", "behind", "live")}
            out.append({**shown, "open": v["version"] in self.collection.open_versions})
        live = {k: pointer[k] for k in ("version", "previous", "since", "generation")}
        return {"live": live["version"], **live, "staged": self.collection.staged(), "versions": out}

    def shadow(self, version: str | None) -> dict[str, Any]:
        """What shadowed searches and interleaved answers say of a staged version. Refusal 404."""
        named = self.version(version)
        collection = self.collection
        return {**collection.shadow_report(named), "preference": collection.preference(named)}

    def ready(self) -> dict[str, Any]:
        """{"ready": True, "version"} or Refusal 503: whether a search is answered at once."""
        live = self.collection.live
        if live is None:
            raise Refusal(503, "not_live", "no version is live yet; `mmtune index promote` makes one", ready=False)
        if live not in self.collection.open_versions:
            raise Refusal(
                503, "not_open", f"version {live} is being opened, or does not open: see the server's log", ready=False
            )
        return {"ready": True, "version": live}

    def queryable(self) -> list[str]:
        """The modalities that the live version (else the staged one) can be asked by; all, while there is none."""
        try:
            return list(self.collection.open(None if self.collection.live else self.collection.staged()).model.towers)
        except MmtuneError:
            return modalities.names()


@contextlib.contextmanager
def refusing(status: int) -> Iterator[None]:
    """Errors of the house as refusals; a server's own lacks (an extra, a version that broke) as 501 and 503."""
    try:
        yield
    except MmtuneError as e:
        raise refusal(e, status) from None
    except RecursionError:
        raise Refusal(status, CODES[status], "nested too deeply") from None


def refusal(e: MmtuneError, status: int) -> Refusal:
    """As `refusing`, of an error that is at hand."""
    if isinstance(e, MissingExtra):
        return Refusal(501, "missing_extra", str(e))
    if isinstance(e, ModelError):
        log.error("%s", e)
        return Refusal(503, "not_open", "the version cannot answer; the server's log says why")
    return Refusal(status, CODES[status], without_paths(e))


def document(answer: "SearchResponse", items: "Mapping[str, Item]") -> dict[str, Any]:
    """An answer as JSON; every result names where its item's own values are."""
    results = []
    for r in answer.results:
        values = {m: address(r["id"], m) for m in items[r["id"]].contents} if r["id"] in items else {}
        results.append({**r, "values": values})
    return {
        "version": answer.version,
        "fingerprint": answer.fingerprint,
        "query": answer.query,
        "seconds": answer.seconds,
        "results": results,
    }


def without_paths(error: Exception) -> str:
    """An error's line without the collection's place on this machine, which it may begin with."""
    line = str(error)
    head, colon, rest = line.partition(": ")
    return rest if colon and head.startswith("/") else line


def address(id: str, modality: str) -> str:
    """Where an item's value is, on this server."""
    return f"/items/{quote(id, safe='')}/value/{modality}"
