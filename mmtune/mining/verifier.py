"""Verify the remaining candidates with a scorer of pairs, such as a cross-encoder, applied to the decoded contents.

Scorers have different score ranges. So a candidate's score is compared with the same scorer's score for the query's positive.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mmtune import backbones, modalities
from mmtune.backbones import scorers
from mmtune.contracts import Scorer, Signal
from mmtune.errors import DataError, MmtuneError, RecipeError
from mmtune.mining.candidate_block import CandidateBlock, preference_rank
from mmtune.mining.context import MiningContext, row_finder
from mmtune.model.cross_encoder_format import is_cross_encoder
from mmtune.model.encode import encode_values
from mmtune.runtime import plugins

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

ScorerOf: TypeAlias = Callable[[str, str], Scorer]
"""Function (query modality, candidate modality) that returns the scorer of that direction."""


class ModelScorer:
    """Uses a dual encoder (usually a stronger one) as a scorer: the cosine of the embeddings of modalities `a` and `b`."""

    def __init__(self, model: "Model", a: str, b: str):
        self.model, self.a, self.b = model, a, b

    def score(self, pairs: Sequence[tuple[Signal, Signal]]) -> list[float]:
        """Return one cosine per pair. Each distinct input of a call is encoded once."""
        left, right = self._encode(self.a, [p[0] for p in pairs]), self._encode(self.b, [p[1] for p in pairs])
        return (left.astype(np.float64) * right).sum(1).tolist()

    def _encode(self, modality: str, signals: list[Signal]) -> np.ndarray:
        position: dict[int, int] = {}
        unique = [s for s in signals if position.setdefault(id(s), len(position)) == len(position) - 1]
        vectors = encode_values(self.model, modality, unique)
        return vectors[[position[id(s)] for s in signals]]


def make_verifier(spec: Scorer | str | None, key: str = "verifier") -> Scorer | ScorerOf | None:
    """Return the scorer for `spec`: the name of a registered scorer, `package.module:Class`, the
    directory of a cross-encoder, or a MODEL.

    Scorer objects and None are returned unchanged. `key` starts messages. Raises RecipeError if `spec` is none of these or cannot be loaded.
    """
    if spec is None or not isinstance(spec, str):
        return spec
    is_model = spec.partition(":")[0] in backbones.TABLE  # such as "tiny:clip", which also looks like module:Class
    if spec in scorers.TABLE or (plugins.is_target(spec) and not is_model) or is_cross_encoder(spec):
        return scorers.load_scorer(spec, {}, f"{key} {spec}")[0]
    from mmtune.model.artifact import load

    try:
        model = load(spec)
    except MmtuneError as e:
        raise RecipeError(f"{key} {spec}: {e}") from None
    return lambda a, b: ModelScorer(model, a, b)


class Verifier:
    """Drops candidates that a scorer scores above p - `guards.verify_margin` * |p|, with p its score of the query's positive."""

    def __init__(self, scorer: Scorer | ScorerOf, context: MiningContext):
        if context.data is None:
            raise DataError("a verifier needs the contents of the rows, but only vectors were given; pass the data too")
        self.names = context.queries.name, context.candidates.name
        self.scorer: Scorer = scorer if not callable(scorer) or hasattr(scorer, "score") else scorer(*self.names)
        self.data, self.positives = context.data, context.positives
        self.margin, self.top = context.options.guards.verify_margin, context.options.guards.verify_top
        rows_of = row_finder(context.data)
        self.rows = rows_of(context.queries.ids), rows_of(context.candidates.ids)
        own = context.positives.own()
        self.own = np.full(len(context.queries), -1, np.int64)
        has = own.counts > 0
        self.own[has] = own.values[own.start[:-1][has]]

    def check(self, block: CandidateBlock, free: np.ndarray, preferred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Verify the `free` candidates: (dropped, unverified) bool [B, W].

        The `guards.verify_top` most preferred candidates of each query are scored; the others are unverified. Queries without a
        positive are not checked, and none of their candidates are dropped.
        """
        positive = self.own[block.queries].copy()
        without = np.flatnonzero(positive < 0)
        owner, candidate = self.positives.group_positives(block.queries[without])
        positive[without[owner[::-1]]] = candidate[::-1]
        _, rank = preference_rank(preferred, free)
        has_positive = (positive >= 0)[:, None]
        scored = free & (rank < self.top) & has_positive
        row, column = np.nonzero(scored)
        known = np.flatnonzero(scored.any(1))
        decoded: dict[tuple[int, int], Signal] = {}
        pairs = [self._pair(decoded, block.queries[i], positive[i]) for i in known]
        pairs += [self._pair(decoded, block.queries[i], block.candidates[i, w]) for i, w in zip(row, column, strict=True)]
        scores = np.asarray(self.scorer.score(pairs), np.float64) if pairs else np.zeros(0)
        if scores.shape != (len(pairs),) or not np.isfinite(scores).all():
            raise DataError(
                f"the verifier must return one finite score for each of {len(pairs)} pairs; it returned shape {scores.shape}, or NaN"
            )
        of_positive = np.full(len(block.queries), np.nan)
        of_positive[known] = scores[: len(known)]
        limit = of_positive - self.margin * np.abs(of_positive)
        dropped = np.zeros(free.shape, bool)
        dropped[row, column] = scores[len(known) :] > limit[row]
        return dropped, free & (rank >= self.top) & has_positive

    def _pair(self, decoded: dict[tuple[int, int], Signal], query: int, candidate: int) -> tuple[Signal, Signal]:
        return self._decode(decoded, 0, int(self.rows[0][query])), self._decode(decoded, 1, int(self.rows[1][candidate]))

    def _decode(self, decoded: dict[tuple[int, int], Signal], side: int, row: int) -> Signal:
        """Decode the content of a row, once per block."""
        if (side, row) not in decoded:
            name = self.names[side]
            decoded[side, row] = modalities.get(name).decode(self.data.read(row, name))
        return decoded[side, row]
