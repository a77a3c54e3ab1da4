"""Search a collection: open the version, run the queries, fuse with BM25 or group the results, and measure the time."""

import threading
import time
from collections.abc import Sequence

import numpy as np

from mmtune import modalities
from mmtune.contracts import Scorer
from mmtune.errors import DataError, MmtuneError, ModelError
from mmtune.index.collection_results import SearchResponse
from mmtune.index.feedback.feedback import FeedbackLog
from mmtune.index.item_catalog import Catalog
from mmtune.index.query.filter_columns import check_columns
from mmtune.index.query.filters import Filter
from mmtune.index.query.group_results import best_groups, first_per_group
from mmtune.index.query.hybrid import DEPTH, ItemBm25, fuse
from mmtune.index.query.query import NearestResults, Query, Results, search_version
from mmtune.index.query.rerank import Rerank, load_rerank, rerank_results
from mmtune.index.query_content import decode_query
from mmtune.index.version_pool import VersionPool

MAX_LENGTH_ERROR = 1e-3
"""Largest allowed difference of a query vector's L2 norm from 1."""


class Searcher:
    """Runs the searches of one collection. Thread-safe.

    Queries are registered with the feedback log, whose query ids are returned in the responses.
    """

    def __init__(self, pool: VersionPool, catalog: Catalog, feedback: FeedbackLog):
        self.pool, self.catalog, self.feedback = pool, catalog, feedback
        self._bm25: tuple[int, ItemBm25] | None = None
        self._columns: tuple[int, dict[str, set[str]]] | None = None
        self._guard = threading.Lock()
        self._rerank: dict[tuple[str, int], Rerank | None] = {}

    def search(
        self, queries: Sequence[Query], version: str | None = None, begin: float | None = None
    ) -> list[SearchResponse | MmtuneError]:
        """Run queries on one version (default: the live one). Returns, for each query, its response or its error.

        begin: start of the measured search time (`time.perf_counter()`), if it was before this call.
        """
        opened = self.pool.open(version)
        begin = time.perf_counter() if begin is None else begin
        refused = {n: e for n, q in enumerate(queries) if q.where is not None and (e := self._filter_error(q.where))}
        outcomes = iter(search_version(opened, [q for n, q in enumerate(queries) if n not in refused], self._refine))
        seconds, out = time.perf_counter() - begin, list[SearchResponse | MmtuneError]()
        for n, query in enumerate(queries):
            results = refused[n] if n in refused else next(outcomes)
            if isinstance(results, MmtuneError):
                out.append(results)
            else:
                out.append(SearchResponse(opened.version, opened.fingerprint, results, seconds, self._query_id(query)))
        return out

    def rerank(self, spec: "Scorer | str | None", depth: int) -> Rerank | None:
        """Return the re-ranking for a scorer (see `load_rerank`). A scorer that is named by a string is loaded once."""
        if not isinstance(spec, str):
            return load_rerank(spec, depth)
        with self._guard:
            if (spec, depth) not in self._rerank:
                self._rerank[spec, depth] = load_rerank(spec, depth)
            return self._rerank[spec, depth]

    def _filter_error(self, where: Filter) -> DataError | None:
        """Return the error of a filter that does not fit the columns of the items; otherwise None."""
        with self._guard:
            seq = self.catalog.seq
            if self._columns is None or self._columns[0] != seq:
                self._columns = (seq, self.catalog.columns())
            columns = self._columns[1]
        try:
            check_columns(where, columns)
        except DataError as e:
            return e
        return None

    def _query_id(self, query: Query) -> str:
        content = query.content
        if content is not None and content.data is not None:
            return self.feedback.remember(query.modality, content.data, content.label)
        return query.item or ""

    def search_vectors(
        self,
        vectors: np.ndarray,
        fingerprint: str,
        k: int,
        where: Filter | None,
        version: str | None,
        target: Sequence[str] | None,
    ) -> list[SearchResponse]:
        """See `Collection.search_vectors`."""
        opened, begin = self.pool.open(version), time.perf_counter()
        if where is not None and (error := self._filter_error(where)):
            raise error
        if fingerprint != opened.fingerprint:
            raise ModelError(
                f"these vectors were embedded by {fingerprint or 'no known model'}, and version {opened.version} by "
                f"{opened.fingerprint}: vectors of two models are not comparable; embed the queries with the version's own model"
            )
        query_QD = np.atleast_2d(np.asarray(vectors, np.float32))
        lengths = np.linalg.norm(query_QD, axis=-1)
        if query_QD.shape[-1] == opened.dim and not (abs(lengths - 1) <= MAX_LENGTH_ERROR).all():
            raise DataError(
                f"search_vectors: the vectors have L2 norms of {lengths.min():.4g} to {lengths.max():.4g}; a model's have 1; "
                "pass the embeddings of the model unchanged"
            )
        per_query = opened.search(query_QD, k, where, target)
        seconds = (time.perf_counter() - begin) / max(1, len(per_query))
        return [SearchResponse(opened.version, opened.fingerprint, results, seconds) for results in per_query]

    def _refine(self, query: Query, nearest: NearestResults) -> Results:
        """Compute the results of a hybrid, grouped or re-ranked query."""
        if query.rerank is not None:
            results = self._reranked(query, query.rerank, nearest)
            return first_per_group(results, query.group_by) if query.group_by else results
        if query.hybrid:
            results = self._fused(query, nearest(max(query.k, DEPTH)))
            return first_per_group(results, query.group_by) if query.group_by else results
        assert query.group_by is not None
        item = self.catalog.items([query.item]).get(query.item) if query.item is not None else None
        return best_groups(nearest, query.k, query.group_by, item.payload.get(query.group_by) if item else None)

    def _reranked(self, query: Query, rerank: Rerank, nearest: NearestResults) -> Results:
        count = max(query.k, rerank.depth)
        results = self._fused(query, nearest(max(count, DEPTH)))[:count] if query.hybrid else nearest(count)
        if query.content is not None:
            return rerank_results(rerank, query.modality, query.content.signal, results, self.catalog)
        item = self.catalog.items([query.item or ""])[query.item or ""]
        name = next((m for m in dict.fromkeys(r.modality for r in results) if m in item.contents), next(iter(item.contents)))
        assert name is not None
        signal = decode_query(name, self.catalog.read(item, name)).signal
        return rerank_results(rerank, name, signal, results, self.catalog)

    def _fused(self, query: Query, results: Results) -> Results:
        words = self._words(query)
        with self._guard:
            seq = self.catalog.seq
            if self._bm25 is None or self._bm25[0] != seq:
                self._bm25 = (seq, ItemBm25(self.catalog))
            bm25 = self._bm25[1]
        fused = fuse(bm25, words, results, query.where, query.target)
        return [r for r in fused if r.id != query.item]

    def _words(self, query: Query) -> str:
        """Return the text that BM25 searches for: the query, or the caption of the query item."""
        if query.item is None:
            if query.content is None or not modalities.get(query.modality).language:
                raise DataError(f"hybrid search needs a text query; got a query of modality {query.modality}")
            return str(query.content.signal)
        item = self.catalog.items([query.item]).get(query.item)
        names = [m for m in item.contents if modalities.get(m).language] if item else []
        if item is None or not names:
            raise DataError(f"hybrid search needs text, and item {query.item!r} has no caption; search without hybrid")
        return " ".join(self.catalog.read(item, m).decode("utf-8", "replace") for m in names)
