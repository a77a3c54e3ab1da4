"""Blocks of candidates: what every source finds for some queries, scored alike, known positives left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune.errors import DataError
from mmtune.mining.bm25_candidates import Lexical
from mmtune.mining.metadata_candidates import Sibling
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.items import Items
from mmtune.relevance.positives import Positives
from mmtune.search.approximate import ApproximateSearch
from mmtune.search.blocked import ExactSearch
from mmtune.search.exact_scores import pair_keys
from mmtune.search.parallel import worker_count
from mmtune.search.tie_order import GRID, best

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat

SOURCES = ("nearest", "lexical", "siblings")


@dataclass
class Block:
    """B queries with W candidates each: items [B, W] (-1: none), scores float32, rank from 1 within its source, source.

    positive [B] float64: the score margins compare with, NaN when there is none. Rows are in the order: source, rank.
    """

    q: np.ndarray
    items: np.ndarray
    scores: np.ndarray
    rank: np.ndarray
    source: np.ndarray
    positive: np.ndarray

    @property
    def there(self) -> np.ndarray:
        """bool [B, W]: places that hold a candidate."""
        return self.items >= 0


def device_of(name: str) -> str:
    """The accelerator when "auto" finds one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def searcher(candidates: Items, options: MiningOptions, k: int) -> "ExactSearch | ApproximateSearch":
    """The search that the options ask for."""
    s = options.search
    method = s.method if s.method != "auto" else ("exact" if len(candidates) <= s.exact_up_to else "ivf")
    if method == "exact":
        return ExactSearch(candidates.vectors, s.memory_mb, device_of(s.device), k)
    return ApproximateSearch(candidates.vectors, method, s.probes, device_of(s.device), k)


class Sources:
    """All sources of one direction."""

    def __init__(
        self,
        queries: Items,
        candidates: Items,
        positives: Positives,
        options: MiningOptions,
        data: "Data | WeightedConcat | None",
        row_of: "Callable[[list[str]], np.ndarray] | None",
        search: "ExactSearch | ApproximateSearch | None" = None,
    ):
        """search: one over the same candidates that is there already."""
        self.queries, self.candidates, self.positives, self.window = queries, candidates, positives, options.window
        self.search = search
        if search is None and "nearest" in options.sources:
            self.search = searcher(candidates, options, options.window)
        self.lexical: Lexical | None = None
        self.siblings: Sibling | None = None
        if set(options.sources) - {"nearest"} and (data is None or row_of is None):
            raise DataError(f"sources: {', '.join(options.sources)} need the data; only vectors were given")
        if "lexical" in options.sources and data is not None and row_of is not None:
            # positives that rank high in words would use up the window: look further, then leave them out
            self.lexical = Lexical(queries, candidates, data, row_of, 4 * options.window)
        if "siblings" in options.sources and data is not None and row_of is not None and options.siblings is not None:
            self.siblings = Sibling(queries, candidates, data, row_of, options.siblings)
        self.block = self.search.block if self.search else 1024
        self.threads = worker_count(device_of(options.search.device))

    def top(self, q: np.ndarray, positive: np.ndarray) -> Block:
        """Candidates of query items q [B]; an item that several sources find counts for the first of them."""
        parts = []
        if self.search:
            items, keys = self.search.top(self.queries.vectors[q], self.positives.of(q))
            parts.append(self._part(0, items, keys))
        if self.lexical:
            items = self.lexical.top(q)
            items = np.where(self.positives.contains(q, items), -1, items)
            parts.append(self._part(1, *self._scored(q, _packed(items)[:, : self.window])))
        if self.siblings:
            parts.append(self._part(2, *self._nearest_siblings(q)))
        items, scores, rank, source = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
        if len(parts) > 1:
            order = np.argsort(items, axis=1, kind="stable")
            line = np.take_along_axis(items, order, 1)
            again = np.zeros(items.shape, bool)
            np.put_along_axis(again, order[:, 1:], (line[:, 1:] == line[:, :-1]) & (line[:, 1:] >= 0), 1)
            items = np.where(again, -1, items)
        return Block(q, items, scores, rank, source, positive)

    def _part(self, source: int, items: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, ...]:
        scores = keys.astype(np.float32) / np.float32(GRID)
        rank = np.broadcast_to(np.arange(1, items.shape[1] + 1, dtype=np.int32), items.shape)
        return items, scores, rank, np.full(items.shape, source, np.int8)

    def _scored(self, q: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        row, column = np.nonzero(items >= 0)
        keys = np.full(items.shape, -GRID, np.int32)
        c = self.candidates
        keys[row, column] = pair_keys(self.queries.vectors, c.vectors, q[row], items[row, column])
        return items, keys

    def _nearest_siblings(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.siblings is not None
        q_BD, c, owners, found = self.queries.vectors[q], self.candidates, [], []
        for i, item in enumerate(q.tolist()):
            members = self.siblings.of(item)
            members = members[~self.positives.contains(np.array([item]), members[None, :])[0]]
            if len(members) > 4 * self.window:  # float32 tells most of them off
                near = q_BD[i] @ c.vectors[members].T
                members = members[near >= np.partition(near, -self.window)[-self.window] - 1e-4]
            owners.append(np.full(len(members), i))
            found.append(members)
        owner, item_P = np.concatenate(owners), np.concatenate(found)
        keys = pair_keys(q_BD, c.vectors, owner, item_P)
        return best(owner, item_P, keys, len(q), self.window)


def _packed(items: np.ndarray) -> np.ndarray:
    """The same rows with the empty places last."""
    return np.take_along_axis(items, np.argsort(items < 0, axis=1, kind="stable"), 1)
