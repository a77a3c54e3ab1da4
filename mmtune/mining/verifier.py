"""A second opinion on the candidates that are left: the `score(pairs)` protocol of a teacher, on signals.

Its scale is its own, so a candidate is compared with what the same verifier gives to the query's own positive.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Scorer
from mmtune.errors import DataError
from mmtune.mining.candidates import Block
from mmtune.relevance.items import Items
from mmtune.relevance.positives import Positives

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat


class ModelScorer:
    """A (stronger) dual encoder as a verifier: the cosine of its own vectors. Signals' modalities are given beforehand."""

    def __init__(self, model: Any, a: str, b: str):
        self.model, self.a, self.b = model, a, b

    def score(self, pairs: Sequence[tuple[Any, Any]]) -> list[float]:
        """Each distinct signal of a call is encoded once."""
        left, right = self._encode(self.a, [p[0] for p in pairs]), self._encode(self.b, [p[1] for p in pairs])
        return (left.astype(np.float64) * right).sum(1).tolist()

    def _encode(self, modality: str, signals: list[Any]) -> np.ndarray:
        place: dict[int, int] = {}
        unique = [s for s in signals if place.setdefault(id(s), len(place)) == len(place) - 1]
        vectors = self.model.encode(**{modality: unique})
        return vectors[[place[id(s)] for s in signals]]


class Verifier:
    """Drops candidates that a Scorer finds as good as the query's own positive, within a margin."""

    def __init__(
        self,
        scorer: Scorer,
        data: "Data | WeightedConcat",
        queries: Items,
        candidates: Items,
        positives: Positives,
        row_of: Callable[[list[str]], np.ndarray],
        margin: float,
        top: int,
    ):
        self.scorer, self.data, self.margin, self.top = scorer, data, margin, top
        self.names = queries.name, candidates.name
        self.row_q, self.row_c = row_of(queries.ids), row_of(candidates.ids)
        own = positives.own()
        self.own = np.full(len(queries), -1, np.int64)
        has = own.counts > 0
        self.own[has] = own.values[own.start[:-1][has]]
        self.positives = positives

    def drops(self, block: Block, free: np.ndarray, preferred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(dropped, unverified) bool [B, W] among the `free` candidates: the `top` preferred ones of each query are asked
        about, the others are not known to be safe. A query without any positive is not asked about, and nothing is dropped."""
        positive = self.own[block.q].copy()
        lacks = np.flatnonzero(positive < 0)
        owner, c = self.positives.group_positives(block.q[lacks])
        positive[lacks[owner[::-1]]] = c[::-1]
        order = np.argsort(np.where(free, preferred, np.inf), axis=1, kind="stable")
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), 1)
        asked = free & (place < self.top) & (positive >= 0)[:, None]
        row, column = np.nonzero(asked)
        known = np.flatnonzero(asked.any(1))
        signals: dict[tuple[int, int], Any] = {}
        pairs = [self._pair(signals, block.q[i], positive[i]) for i in known]
        pairs += [self._pair(signals, block.q[i], block.items[i, w]) for i, w in zip(row, column, strict=True)]
        scores = np.asarray(self.scorer.score(pairs), np.float64) if pairs else np.zeros(0)
        if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
            raise DataError(f"the verifier gave {scores.shape} scores for {len(pairs)} pairs, or some that are not numbers")
        best = np.full(len(block.q), np.nan)
        best[known] = scores[: len(known)]
        out = np.zeros(free.shape, bool)
        limit = best - self.margin * np.abs(best)
        out[row, column] = scores[len(known) :] > limit[row]
        return out, free & (place >= self.top) & (positive >= 0)[:, None]

    def _pair(self, signals: dict[tuple[int, int], Any], q: int, c: int) -> tuple[Any, Any]:
        return self._signal(signals, 0, int(self.row_q[q])), self._signal(signals, 1, int(self.row_c[c]))

    def _signal(self, signals: dict[tuple[int, int], Any], side: int, row: int) -> Any:
        if (side, row) not in signals:
            name = self.names[side]
            signals[side, row] = modalities.get(name).decode(self.data.read(row, name))
        return signals[side, row]
