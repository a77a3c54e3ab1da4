"""Mine in rounds while training: embed with the current weights, search, guard, train on the negatives, and repeat.

`MiningRounds` gives the training loop its batches and the mined rows that join them. All of its state is in the run's
directory: the table of round k is RUN/mining/round-k.parquet. A resumed run therefore continues with the same negatives.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mmtune import modalities
from mmtune.contracts import Pair, Scorer, direction
from mmtune.embedding.embed_rows import embed_data
from mmtune.mining.batch_negatives import BatchNegatives
from mmtune.mining.confusable_batches import ConfusableBatches
from mmtune.mining.mine_vectors import mine_vectors, mined_directions, table_settings
from mmtune.mining.mining_result import MiningResult
from mmtune.mining.negatives_table import read_metadata
from mmtune.mining.verifier import ScorerOf
from mmtune.recipe.mining_block import MiningOptions
from mmtune.relevance.judgments import Verdict
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.model.dual_encoder import Model

BatchPlan: TypeAlias = Callable[[int], Sequence[np.ndarray]]
"""Function of the epoch that returns the row numbers of each batch."""
Validate: TypeAlias = "Callable[[Model], dict[str, float]]"
"""Function of the model that returns metrics; "metric" is the one that selects checkpoints."""

CHEAP_NEGATIVES_PER_QUERY = 4
"""Default number of mined negatives per query in directions whose candidates are text."""


def round_epochs(epochs: float, rounds: int) -> list[int]:
    """Return the epochs at whose start negatives are mined, evenly spread over training.

    The first epochs train on random batches, because the nearest neighbours of an untrained model are noise. ANCE
    (arXiv 2007.00808) warms up for the same reason.
    """
    whole = max(int(np.ceil(epochs)), 1)
    return sorted({whole * (i + 1) // (rounds + 1) for i in range(rounds)})


def negatives_per_query(options: MiningOptions, directions: Sequence[str]) -> dict[str, int]:
    """Return how many mined negatives of each query join its batch, by direction.

    The options decide if they give a number. Otherwise it is 4 in directions whose candidates are text, which is cheap to
    encode, and 0 in the others. If no direction has text as candidates, it is 1 everywhere: decoding and encoding further
    images or sounds roughly doubles the cost of a step.
    """
    cheap = {name: modalities.get(name.partition("->")[2]).language for name in directions}
    default = {name: (CHEAP_NEGATIVES_PER_QUERY if cheap[name] else 0) if any(cheap.values()) else 1 for name in directions}
    given = {name: options.for_direction(name).use.negatives_per_query for name in directions}
    return {name: default[name] if (n := given[name]) is None else n for name in directions}


@dataclass
class Round:
    """The negatives used from the first epoch of a round on.

    negatives: None if the round has none
    per_query: number of negatives per query, by direction
    result: the mining run that made them; None before the first round, or if the user supplied the table
    """

    negatives: BatchNegatives | None
    per_query: dict[str, int]
    result: MiningResult | None


class MiningRounds:
    """Supplies the training loop with batches and mined negatives.

    plan(epoch): returns the batches; mines first if a round starts with this epoch
    extra(rows): returns the mined rows that join a batch
    watch(validate): wraps the validation function, to report a metric that falls after mining

    Before the first round, `plan` returns the batches of `plain`, and no rows join them. All epochs have the same number of
    batches. If the user supplies a table (`options.table`), its negatives are used from epoch 0 on and nothing is mined.
    """

    def __init__(
        self,
        model: "Model",
        data: "Data | WeightedConcat",
        plain: BatchPlan,
        options: MiningOptions,
        directory: str | Path,
        *,
        pairs: Sequence[Pair],
        epochs: float,
        batch_size: int,
        seed: int = 0,
        verifier: Scorer | ScorerOf | None = None,
        processes: Processes = SINGLE_PROCESS,
        quiet: bool = False,
        base_fingerprint: str = "",
        mined: Callable[[MiningResult], None] | None = None,
        judged: Sequence[Verdict] = (),
    ):
        """Prepare the rounds.

        plain: the batch plan without mining
        directory: where the rounds' tables are written
        pairs: the trained pairs
        base_fingerprint: fingerprint of the model that training starts from; a table supplied by the user must be mined with it
        mined: called on rank 0 after each round that was mined
        judged: known negatives, e.g. those given with the data, in addition to `options.judgments`
        """
        self.model, self.data, self.plain, self.options, self.pairs = model, data, plain, options, list(pairs)
        self.directory, self.batch_size, self.seed = Path(directory), batch_size, seed
        self.verifier, self.processes, self.quiet, self.base_fingerprint = verifier, processes, quiet, base_fingerprint
        self.judged = judged
        self.starts = [0] if options.table else round_epochs(epochs, options.rounds)
        self.epoch, self.number = 0, -1
        self.round = Round(None, {}, None)
        self._previous_metric: float | None = None
        self._mined = mined

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        """Return the batches of an epoch; mines first if a round starts with it.

        Raises DataError if nothing can be searched.
        """
        self.epoch = epoch
        number = sum(start <= epoch for start in self.starts) - 1
        if number != self.number:
            self.number, self.round = number, self._begin(number)
        batches, negatives = self.plain(epoch), self.round.negatives
        if negatives is None or not self.options.use.confusable:
            return batches
        rows = np.concatenate(batches)
        share, groups = self.options.use.confusable, self.data.labels["group"]
        return ConfusableBatches(negatives, lambda _: rows, self.batch_size, self.seed, share, groups)(epoch)

    def extra(self, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """Return the mined rows for a batch of the current epoch (see `BatchNegatives.draw`), or None if there are none."""
        if self.round.negatives is None:
            return None
        return self.round.negatives.draw(rows, self.round.per_query, self.seed, self.epoch) or None

    def watch(self, validate: Validate) -> Validate:
        """Wrap `validate`: print a line if the metric fell in an epoch with mined negatives."""

        def watched(model: "Model") -> dict[str, float]:
            metrics = validate(model)
            before, self._previous_metric = self._previous_metric, metrics["metric"]
            if before is not None and self.round.result is not None:
                line = metric_drop("the validation metric", before, metrics["metric"], self.round.result)
                if line:
                    self._print(line)
            return metrics

        return watched

    def _begin(self, number: int) -> Round:
        if number < 0:
            return Round(None, {}, None)
        if self.options.table:
            negatives = BatchNegatives(self.options.table, self.data, self.base_fingerprint, self.options.allow_stale)
            for line in negatives.notes:
                self._print(f"mining: {line}")
            return Round(negatives, negatives_per_query(self.options, negatives.directions), None)
        path = self.directory / f"round-{number}.parquet"
        finished = self.processes.broadcast(self._read_finished(path) is not None)
        result = self._read_finished(path) if finished else self._mine(path)
        assert result is not None
        mined = BatchNegatives(path, self.data, result.document["fingerprint"]) if result.mined else None
        for line in [*result.document["warnings"], *(mined.notes if mined else [])]:
            self._print(f"mining round {number + 1}: {line}")
        self._print(f"mining round {number + 1}: {result.mined} negatives, audit {result.page}")
        return Round(mined, negatives_per_query(self.options, mined.directions) if mined else {}, result)

    def _modalities(self) -> list[str]:
        used = {m for pair in self.pairs for m in pair}
        used |= {m for name in self.options.directions or [] for m in name.split("->")}
        return [m for m in self.data.modalities if m in used]

    def _read_finished(self, path: Path) -> MiningResult | None:
        """Return the round's result if this run has finished it before with the same options, else None."""
        result = MiningResult.beside(path, 0, {})
        if not (path.exists() and result.audit.exists() and result.page.exists()):
            return None
        metadata, document = read_metadata(path), read_json(result.audit)
        directed = mined_directions(self._modalities(), self.options.directions, self.pairs)
        settings = table_settings(self.options, [direction(a, b) for a, b in directed])
        if metadata.fingerprint != document["fingerprint"] or metadata.settings != settings:
            return None
        return MiningResult.beside(path, sum(d["mined"] for d in document["directions"].values()), document)

    def _mine(self, path: Path) -> MiningResult | None:
        """Mine one round. Each process embeds its share of the rows; rank 0 mines, and the others read its table."""
        embedded = embed_data(self.model, self.data, self._modalities(), processes=self.processes)
        result = None
        if self.processes.is_main_process:
            result = mine_vectors(
                embedded,
                path,
                self.options,
                pairs=self.pairs,
                data=self.data,
                cache=self.directory,
                verifier=self.verifier,
                quiet=self.quiet,
                judged=self.judged,
            )
            if self._mined is not None:
                self._mined(result)
        self.processes.barrier()
        return result or self._read_finished(path)

    def _print(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def metric_drop(name: str, before: float, after: float, mined: MiningResult, tolerance: float = 0.0) -> str | None:
    """Return a message for the user if a metric fell after mining, else None. tolerance: a fall up to this size is ignored."""
    if after >= before - tolerance:
        return None
    directions = mined.document["directions"].values()
    unlabelled = sum(d.get("mined_unlabelled", d["mined"]) for d in directions)  # audits of earlier versions lack it
    fell = f"{name} fell from {before:.4f} to {after:.4f} after mining"
    if not unlabelled:
        return (
            f"{fell}. The groups or verdicts say of all {mined.mined} mined negatives that they are negatives, so false negatives are "
            f"not the reason; perhaps they are too hard: try fewer (mining.use.negatives_per_query) or mining.guards.skip_top. See {mined.page}"
        )
    above = sum(d["mined_at_or_above_positive"] for d in directions)
    suspected = sum(d["suspected_false_negatives"] for d in directions)
    return (
        f"{fell}, perhaps because of false negatives. {unlabelled} of {mined.mined} mined negatives are not negatives by their groups; "
        f"{above} of all score at least as high as the query's positive; {suspected} others were dropped. See {mined.page}"
    )
