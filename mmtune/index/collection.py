"""A named corpus with a pinned model a version: build, search, compare, promote, roll back. `mmtune.Collection(path)`."""

import random
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities as kinds
from mmtune.contracts import Row
from mmtune.errors import DataError, MmtuneError, ModelError
from mmtune.index import audit_log
from mmtune.index.collection_state import Keeping
from mmtune.index.feedback.feedback import FeedbackLog
from mmtune.index.open_version import decode_query
from mmtune.index.protocols import SearchResponse
from mmtune.index.query.filters import parse
from mmtune.index.query.group_results import best_of_each, one_each
from mmtune.index.query.hybrid import DEPTH, ItemWords, fuse
from mmtune.index.query.query import Nearest, Query, Results, ask_all
from mmtune.index.release.shadow import ShadowSearches

if TYPE_CHECKING:
    from mmtune.comparison.gate import Gate
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


class Collection(Keeping):
    """One directory (see `mmtune.index.layout`). Threads may share one; any number of processes may search while one
    writes.

    A search reads the live pointer once and answers from that version alone. Nothing here can ask a version with another
    model than the one that embedded it.
    """

    def __init__(self, path: str | Path, *, create: bool = False):
        super().__init__(path, create=create)
        self.feedback_log = FeedbackLog(self.path)
        self.shadow_searches = ShadowSearches(self)
        self._words: tuple[int, Any] | None = None

    # --- building and changing -----------------------------------------------------------------------------------

    def build(
        self,
        model: "Model | str | Path | Mapping[str, str]",
        data: "Data | str | None" = None,
        *,
        store: str | None = None,
        url: str | None = None,
        index: str = "auto",
        modalities: Sequence[str] | None = None,
        dim: int | None = None,
        short: int | None = None,
        memory_mb: int | None = None,
        prune: bool = False,
        batch_size: int = 64,
        quiet: bool = False,
    ) -> dict[str, Any]:
        """Embed the corpus with `model` into a new version; returns {"version", "fingerprint", "items", ...}. Never touches the
        pointer: the first version, too, waits for `promote`.

        data: packed rows that the corpus takes first, as `upsert` does (so every version gets them; `prune`: and loses the
        rest);
        None: the corpus as it is. store, url, index: see `mmtune.index.stores`. modalities: which get an index (default:
        those that lie in files). dim: a prefix of the model, a space of its own; short: search by that prefix of the vectors,
        re-rank by all; memory_mb: what making an ivfpq index may take beside the ids (both faiss store). Killed and
        called again, it embeds nothing twice.
        """
        from mmtune.index.release.build import build

        options = {"store": store, "url": url, "index": index, "modalities": modalities, "dim": dim}
        options |= {"short": short, "memory_mb": memory_mb}
        return build(self, model, data, **options, prune=prune, batch_size=batch_size, quiet=quiet)  # type: ignore[arg-type]

    def upsert(self, data: "Data | str | Iterable[Row]", *, quiet: bool = True) -> dict[str, Any]:
        """Insert or replace items by id, in the corpus and in every version (live, staged, and those to roll back to).

        data: packed rows (their content stays in the shards), or rows with their content (kept in the collection).
        Returns counts, "rejected" rows with reasons, and "behind": versions that could not be brought up to date, and why.
        """
        return self.take(data, prune=False, quiet=quiet)

    def delete(self, ids: Sequence[str]) -> dict[str, Any]:
        """Remove items by id, from the corpus and from every version."""
        with self.layout.lock():
            self.in_step()
            count = self.catalog.remove(list(ids))
            audit_log.append(self.layout, audit_log.event("delete", items=count))
        return {"deleted": count, "unknown": len(set(ids)) - count, "behind": self.update_all_versions()}

    # --- searching -----------------------------------------------------------------------------------------------

    def search(
        self,
        *,
        k: int = 10,
        where: str | None = None,
        version: str | None = None,
        hybrid: bool = False,
        item: str | None = None,
        target: Sequence[str] | None = None,
        per: str | None = None,
        **query: Any,
    ) -> SearchResponse:
        """The k best items for one value, `search(NAME=value)` with a modality's name, or for an `item` by id (itself left
        out).

        where: a filter over metadata, e.g. "category = 'Apple'"; version: another than the live one; target: only what those
        modalities found; hybrid: fused with BM25 over the items' words (the query must be words); per: "group" or a column of
        metadata, one answer for each value of it, the item that was found best (for an `item`, its own value is left out, too).
        """
        if len(query) + (item is not None) != 1:
            raise DataError(
                f"search: one value of {', '.join(kinds.names())}, or an item; got {len(query) + (item is not None)}"
            )
        opened, condition = self.open(version), parse(where) if where else None
        begin = time.perf_counter()  # opening is no part of a search
        options: dict[str, Any] = {"k": k, "where": condition, "target": tuple(target) if target else None, "per": per}
        if item is not None:
            ask = Query(item=item, **options)
        else:
            ((name, value),) = query.items()
            opened.require(name)
            ask = Query(name, decode_query(name, value), hybrid=hybrid, **options)
        (found,) = self.search_many([ask], version, begin)
        if isinstance(found, MmtuneError):
            raise found
        return found

    def search_many(
        self, asks: Sequence[Query], version: str | None = None, begin: float | None = None
    ) -> list[SearchResponse | MmtuneError]:
        """As `search`, of many that one version answers in shared passes: each has its answer, or its own error.

        begin: when the first was asked (`time.perf_counter`), if that was before now.
        """
        opened = self.open(version)
        begin = time.perf_counter() if begin is None else begin
        found = ask_all(opened, asks, self._alone)
        seconds, out = time.perf_counter() - begin, list[SearchResponse | MmtuneError]()
        for ask, results in zip(asks, found, strict=True):
            if isinstance(results, MmtuneError):
                out.append(results)
                continue
            mark, content = ask.item or "", ask.content
            if content is not None and content.data is not None:
                mark = self.feedback_log.remember(ask.name, content.data, content.mark)
            answer = SearchResponse(opened.version, opened.fingerprint, results, seconds, mark)
            if version is None and not ask.alone:
                self.shadow_searches.offer(answer, ask)
            out.append(answer)
        return out

    def _alone(self, ask: Query, nearest: Nearest) -> Results:
        """Words fused with what the vectors found, or one answer for each value of a column."""
        if ask.hybrid:
            results = self._hybrid(ask, nearest(max(ask.k, DEPTH)))
            return one_each(results, ask.per) if ask.per else results
        assert ask.per is not None
        mine = self.catalog.items([ask.item]).get(ask.item) if ask.item is not None else None
        return best_of_each(nearest, ask.k, ask.per, mine.columns.get(ask.per) if mine else None)

    def _hybrid(self, ask: Query, results: Results) -> Results:
        if ask.content is None or not kinds.get(ask.name).language:
            raise DataError(f"hybrid search is by words; a value of {ask.name} has none")
        with self._guard:
            seq = self.catalog.seq
            if self._words is None or self._words[0] != seq:
                self._words = (seq, ItemWords(self.catalog))
            held: ItemWords = self._words[1]
        return fuse(held, str(ask.content.signal), results, ask.where)

    def search_vectors(
        self,
        vectors: np.ndarray,
        fingerprint: str,
        k: int = 10,
        *,
        where: str | None = None,
        version: str | None = None,
        target: Sequence[str] | None = None,
    ) -> list[SearchResponse]:
        """Answers for unit vectors [Q, D] that `fingerprint` made. ModelError when that is not the version's own model,
        DataError for vectors of another length than 1: no model of ours made them."""
        opened, begin = self.open(version), time.perf_counter()
        if fingerprint != opened.fingerprint:
            raise ModelError(
                f"these vectors are of {fingerprint or 'no model'}, version {opened.version} is of {opened.fingerprint}: "
                "vectors of two models are not comparable; embed the queries with the version's own model"
            )
        asked = np.atleast_2d(np.asarray(vectors, np.float32))
        lengths = np.linalg.norm(asked, axis=-1)
        if asked.shape[-1] == opened.dim and not (abs(lengths - 1) <= 1e-3).all():
            raise DataError(f"search_vectors: vectors of length {lengths.min():.4g} to {lengths.max():.4g}; a model's have 1")
        found = opened.search(asked, k, parse(where) if where else None, target)
        seconds = (time.perf_counter() - begin) / max(1, len(found))
        return [SearchResponse(opened.version, opened.fingerprint, results, seconds) for results in found]

    def value(self, id: str, modality: str) -> bytes | None:
        """An item's own value; None when there is no such item, or it has no such value."""
        item = self.catalog.items([id]).get(id)
        return self.catalog.read(item, modality) if item and modality in item.contents else None

    # --- deciding ------------------------------------------------------------------------------------------------

    def promote(
        self,
        version: str,
        *,
        gate: "Gate | Mapping[str, Any] | None" = None,
        queries: "Data | str | None" = None,
        force: bool = False,
        why: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Make `version` live if it passes; {"promoted", "reasons", "checks", ...}. See `mmtune.index.release.promote`."""
        from mmtune.index.release.promote import promote

        return promote(self, version, gate=gate, queries=queries, force=force, why=why, **options)

    def rollback(self, why: str | None = None) -> dict[str, Any]:
        """The version that was live before is live again, at once: it has been kept up to date."""
        from mmtune.index.release.promote import rollback

        return rollback(self, why)

    def shadow(self, version: str | None, fraction: float = 0.1) -> dict[str, Any]:
        """From now on, in every process, repeat that fraction of the live searches on `version`, off the hot path; None:
        stop."""
        if version is not None:
            self.layout.record(version)
        return self.shadow_searches.start(version, fraction)

    def shadow_report(self, version: str | None = None) -> dict[str, Any]:
        """What the shadowed searches say: overlap, rank change, latency, empty answers."""
        return self.shadow_searches.report(version)

    def interleave(self, version: str, *, k: int = 10, rng: random.Random | None = None, **query: Any) -> SearchResponse:
        """One list drafted from the live and the staged answers in turn; clicks on it (`feedback`) say which is preferred."""
        from mmtune.index.feedback.interleave import interleave

        return interleave(self, version, k, rng or random.Random(), **query)

    def preference(self, version: str | None = None) -> dict[str, Any]:
        """Wins of the staged version over live in clicked interleaved answers, with an interval."""
        from mmtune.index.feedback.interleave import preference

        return preference(self, version)

    def feedback(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """Record {"query": id of an answer, "item": id, "kind": "click" | "match" | "not_a_match"}."""
        return self.feedback_log.add(event)

    def export_feedback(self, out: str | Path) -> dict[str, Any]:
        """Judgments and the rows they are about, for `mmtune eval --qrels` and the next round of mining."""
        return self.feedback_log.export(self.catalog, Path(out))

    # --- looking -------------------------------------------------------------------------------------------------

    def versions(self) -> list[dict[str, Any]]:
        """Every version, oldest first: its record, what is applied, its gate, and whether it is live."""
        from mmtune.index.status import versions

        return versions(self)

    def status(self) -> dict[str, Any]:
        """Who is live since when, every version with its fingerprint, counts and gate, the corpus, the shadow."""
        from mmtune.index.status import status

        return status(self)

    def journal(self) -> list[dict[str, Any]]:
        """Who did what, when and why, oldest first."""
        return audit_log.read(self.layout)

    def plan(
        self, model: Any, data: Any = None, items: int | None = None, price_per_hour: float | None = None, **options: Any
    ) -> dict:
        """Hours, bytes and price of embedding the collection's items, or so many like those of `data`, measured on a sample."""
        from mmtune.index.release.cost import plan

        return plan(model, data, items, price_per_hour, coll=self, **options)

    def close(self) -> None:
        """Wait for shadowed searches, release the handles."""
        self.shadow_searches.close()
        with self._guard:
            for opened in self._opened.values():
                opened.close()
            self._opened.clear()
        self.catalog.close()

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        versions = ", ".join(self.layout.versions()) or "no versions"
        return f"Collection({str(self.path)!r}: {len(self.catalog)} items, {versions}, live {self.live})"
