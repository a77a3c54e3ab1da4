"""Mine one direction: search candidates, apply the guards, select negatives, write table rows and count for the audit."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmtune.contracts import JsonObject, Scorer
from mmtune.errors import DataError
from mmtune.mining.audit import Audit
from mmtune.mining.candidate_block import CandidateBlock
from mmtune.mining.candidates import CandidateSearch
from mmtune.mining.context import MiningContext, RowsOf, row_finder
from mmtune.mining.guards import GuardChain, make_guards
from mmtune.mining.margin_calibration import CalibratedMargin, calibrate_margin, guard_quality, search_labelled
from mmtune.mining.negatives_table import DROPPED, MINED, TableWriter
from mmtune.mining.positive_scores import PositiveScores, positive_scores
from mmtune.mining.selection import Selection, make_preference
from mmtune.mining.verifier import ScorerOf, Verifier
from mmtune.relevance.items import Items
from mmtune.relevance.positives import Positives
from mmtune.relevance.ragged import Ragged
from mmtune.runtime.progress import Progress
from mmtune.search.parallel import ordered_map


@dataclass
class _GuardedBlock:
    """The candidates of a block of queries, with the results of the guards.

    masks: {guard name: bool [B, W]}, what each guard by itself would drop
    known_negative: bool [B, W], pairs that labels or people say are negative
    reason: int8 [B, W], the reason that drops the candidate; 0: kept
    preferred: float64 [B, W], the smallest values are mined first
    """

    block: CandidateBlock
    masks: dict[str, np.ndarray]
    known_negative: np.ndarray
    reason: np.ndarray
    preferred: np.ndarray


class DirectionMiner:
    """Mines one direction. judged_negative: the candidate items of each query item that people judged negative."""

    def __init__(self, context: MiningContext, judged_negative: Ragged, verifier: Scorer | ScorerOf | None = None):
        self.context, self.options, self.name = context, context.options, context.direction
        self.queries, self.candidates = context.queries, context.candidates
        q_dim, c_dim = self.queries.dim, self.candidates.dim
        if q_dim != c_dim:
            raise DataError(
                f"{self.name}: query vectors have {q_dim} dimensions, candidate vectors {c_dim}; embed both with one model"
            )
        self.search = CandidateSearch(context)
        self.guards = make_guards(context, judged_negative)
        self.verifier = Verifier(verifier, context) if verifier is not None else None

    def run(self, table: TableWriter, truth: Sequence[str | None] | None, quiet: bool, warnings: list[str]) -> JsonObject:
        """Mine the direction, write the negatives into `table`, and return the direction's part of the audit.

        truth: the true group of every row of the data, to measure the guards with; None: not measured
        quiet: show no progress bar
        warnings: messages for the user are appended to this list
        """
        scores = positive_scores(self.context.positives, self.options.positive)
        warnings += self._warnings(scores)
        margin, measured = self._calibrate(scores)
        guards = self.guards.with_relative_margin(margin.value)
        measured_by_truth = None if truth is None else self._measure_by_truth(guards, scores, truth)
        quota = np.minimum(self.options.negatives * self.queries.rows.counts, self.options.window)
        selection = Selection(quota, len(self.candidates), self.options.guards.hub_cap)
        audit = Audit(self.queries, self.candidates, self.search.names, guards.reasons)
        self._mine_blocks(guards, scores, selection, audit, table, quiet)
        nearest = self.search.nearest
        return audit.document(selection.times_mined, selection.cap) | {
            "relative_margin": margin.to_dict(),
            "measured": measured,
            "measured_by_truth": measured_by_truth,
            "positives": scores.counts(),
            "search": {
                "method": nearest.search.name if nearest else None,
                "sources": list(self.options.sources),
                "recall": nearest.recall() if nearest else 1.0,
            },
            "examples": audit.example_pairs(),
        }

    def _mine_blocks(
        self, guards: GuardChain, scores: PositiveScores, selection: Selection, audit: Audit, table: TableWriter, quiet: bool
    ) -> None:
        preference = make_preference(self.options, self.queries, self.candidates)
        writer = _TableRows(self.name, self.queries, self.candidates, self.search.names, guards.reasons)

        def search_and_guard(queries: np.ndarray) -> _GuardedBlock:
            block = self.search.top(queries, scores.score[queries])
            masks, known_negative = guards.masks(block), guards.known_negatives(block)
            return _GuardedBlock(block, masks, known_negative, guards.first_reason(masks, known_negative), preference(block))

        everything = self.options.record == "all"
        with Progress(f"mine {self.name}", len(self.queries), unit="queries", quiet=quiet) as progress:
            parts = self.search.blocks(np.arange(len(self.queries)))
            for guarded in ordered_map(search_and_guard, parts, self.search.threads):
                block, reason = guarded.block, guarded.reason
                self._verify(guards, guarded)
                is_mined = selection.select(block, reason, guarded.preferred, guards.number("hub"))
                quota = selection.quota[block.queries]
                audit.add(block, guarded.masks, guarded.known_negative, reason, is_mined, quota)
                table.write(writer.columns(block, reason, is_mined, quota, everything))
                progress.advance(len(block.queries))

    def _verify(self, guards: GuardChain, guarded: _GuardedBlock) -> None:
        """Let the verifier, if there is one, drop some of the candidates that the guards kept. Changes `guarded` in place.

        Negatives by human verdict are kept unverified.
        """
        if self.verifier is None:
            return
        free = guarded.block.filled & (guarded.reason == 0) & ~guards.judged_negatives(guarded.block)
        dropped, unverified = self.verifier.check(guarded.block, free, guarded.preferred)
        guarded.masks["verifier"] = dropped
        guarded.reason[dropped] = guards.number("verifier")
        guarded.reason[unverified] = guards.number("unverified")

    def _warnings(self, scores: PositiveScores) -> list[str]:
        lines = []
        if len(self.candidates) < 2:
            lines.append(f"{self.name}: only {len(self.candidates)} distinct candidate, so there are no negatives")
        total, within = len(self.queries), self.context.positives.within
        if within and scores.unknown == total:
            lines.append(f"{self.name}: every group has one item only, so no positives are known; margins compare with score 1")
        elif within and scores.unknown:
            lines.append(
                f"{self.name}: {scores.unknown} of {total} items are the only one of their group; their margins use the median positive score"
            )
        elif not within and scores.unknown == total:
            lines.append(
                f"{self.name}: no row has both modalities and no group links them, so no positives are known: margins are off"
            )
        return lines

    def _calibrate(self, scores: PositiveScores) -> tuple[CalibratedMargin, JsonObject | None]:
        """Return (the relative margin, the guards' quality on labelled rows with the labels hidden, or None without labels)."""
        option = self.options.guards.relative_margin
        margin = CalibratedMargin.fallback("no labelled rows to calibrate on")
        if option != "calibrated":
            margin = CalibratedMargin(option, "given")
        if not (self.queries.labelled.any() and self.candidates.labelled.any()):
            return margin, None
        judged = self.context.positives.judged_pairs
        hidden = Positives(self.queries, self.candidates, ("id",), judged=judged, first_row_only=True)
        truth = Positives(self.queries, self.candidates, judged=judged)
        score = scores.score
        if not hidden.within:
            score = positive_scores(hidden, self.options.positive, own_only=True).score
        sample = search_labelled(self.search.nearest_only(hidden), truth, score)
        if option == "calibrated":
            margin = calibrate_margin(sample)
        return margin, guard_quality(sample, self.guards.with_relative_margin(margin.value))

    def _measure_by_truth(self, guards: GuardChain, scores: PositiveScores, truth: Sequence[str | None]) -> JsonObject | None:
        """Measure the guards' quality against the groups `truth`, on pairs that the labels do not mark as negative already."""
        if self.context.data is None:
            return None
        rows_of = row_finder(self.context.data)
        queries = _regrouped(self.queries, truth, rows_of)
        within = self.candidates is self.queries
        positives = Positives(queries, queries if within else _regrouped(self.candidates, truth, rows_of))
        sample = search_labelled(self.search, positives, scores.score, lambda block: ~guards.known_negatives(block))
        return guard_quality(sample, guards)


def _regrouped(items: Items, truth: Sequence[str | None], rows_of: RowsOf) -> Items:
    """Return the items with groups replaced by `truth`, the groups of the data's rows."""
    names = [truth[i] if i >= 0 else None for i in rows_of(items.row_ids)]
    codes = {n: i for i, n in enumerate(sorted({n for n in truth if n is not None}, key=str), 1)}
    return items.regrouped(np.array([codes[n] if n is not None else 0 for n in names], np.int64))


class _TableRows:
    """Converts blocks of candidates to columns of the negatives table."""

    def __init__(self, name: str, queries: Items, candidates: Items, sources: Sequence[str], reasons: Sequence[str]):
        self.name, self.sources = name, len(sources)
        self.query_ids, self.candidate_ids = pa.array(queries.ids, pa.string()), pa.array(candidates.ids, pa.string())
        self.reasons = pa.array([*sources, *reasons], pa.string())

    def columns(
        self, block: CandidateBlock, reason: np.ndarray, is_mined: np.ndarray, quota: np.ndarray, everything: bool
    ) -> dict[str, pa.Array]:
        """Return the mined pairs as columns.

        everything: include dropped pairs that score at least as high as the query's lowest mined pair
        """
        keep = is_mined
        if everything:
            lowest = np.where(is_mined, block.scores, np.inf).min(1, initial=np.inf)
            lowest[is_mined.sum(1) < quota] = -np.inf
            keep = is_mined | ((reason > 0) & block.filled & (block.scores >= lowest[:, None]))
        i, w = np.nonzero(keep)
        mined = is_mined[i, w]
        why = np.where(mined, block.source[i, w], self.sources + reason[i, w].astype(np.int64) - 1)
        positive = block.positive_score[i].astype(np.float32)
        return {
            "direction": pa.repeat(self.name, len(i)),
            "query_id": self.query_ids.take(pa.array(block.queries[i])),
            "negative_id": self.candidate_ids.take(pa.array(block.candidates[i, w])),
            "rank": pa.array(block.rank[i, w]),
            "score": pa.array(block.scores[i, w]),
            "positive_score": pa.array(positive, mask=np.isnan(positive)),
            "verdict": pa.array([DROPPED, MINED]).take(pa.array(mined.astype(np.int8))),
            "reason": self.reasons.take(pa.array(why)),
        }
