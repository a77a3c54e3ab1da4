"""Mining in rounds while training: embed with the current weights, search, guard, train on the negatives, and again.

`MiningRounds` gives the training loop its batches and the mined rows that join them. All of its state is in the run's
directory: round k's table is RUN/mining/round-k.parquet, so a killed run finds it there.
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
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.model.dual_encoder import Model

BatchPlan: TypeAlias = Callable[[int], Sequence[np.ndarray]]
"""Epoch -> the row numbers of each of its batches."""
Validate: TypeAlias = "Callable[[Model], dict[str, float]]"
"""Model -> metrics, of which "metric" is the chosen one."""

CHEAP_NEGATIVES_PER_QUERY = 4
"""Default where candidates are text."""


def round_epochs(epochs: float, rounds: int) -> list[int]:
    """The epochs that begin with mining, evenly spread.

    The first epochs run on random batches: the neighbours of an untrained model are noise (ANCE, arXiv 2007.00808, warms up
    for the same reason).
    """
    whole = max(int(np.ceil(epochs)), 1)
    return sorted({whole * (i + 1) // (rounds + 1) for i in range(rounds)})


def negatives_per_query(options: MiningOptions, directions: Sequence[str]) -> dict[str, int]:
    """Mined negatives of each query that join its batch, by direction.

    Unless the options name a number: 4 where candidates are text, which is cheap to encode, and none elsewhere; 1 everywhere
    when no direction has text as candidates. (Candidates that are read from files double the cost of a step.)
    """
    cheap = {name: modalities.get(name.partition("->")[2]).language for name in directions}
    default = {name: (CHEAP_NEGATIVES_PER_QUERY if cheap[name] else 0) if any(cheap.values()) else 1 for name in directions}
    given = {name: options.for_direction(name).use.negatives_per_query for name in directions}
    return {name: default[name] if (n := given[name]) is None else n for name in directions}


@dataclass
class Round:
    """The negatives that batches use from the round's first epoch on; result: None where they come from a table of the user's
    own."""

    negatives: BatchNegatives | None
    per_query: dict[str, int]
    result: MiningResult | None


class MiningRounds:
    """For the training loop: `plan(epoch)` -> batches, `extra(rows)` -> mined rows that join a batch, `watch(validate)`.

    Before the first round, batches are those of `plain` and no rows join them. Every epoch has the same number of batches. With
    a table of the user's own (`options.table`) its negatives are used from the first epoch on, and nothing is mined.
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
    ):
        """plain: the batches without mining; directory: where the rounds' tables are; base_fingerprint: of the model that training
        starts from, with which a table of the user's own must have been mined."""
        self.model, self.data, self.plain, self.options, self.pairs = model, data, plain, options, list(pairs)
        self.directory, self.batch_size, self.seed = Path(directory), batch_size, seed
        self.verifier, self.processes, self.quiet, self.base_fingerprint = verifier, processes, quiet, base_fingerprint
        self.starts = [0] if options.table else round_epochs(epochs, options.rounds)
        self.epoch, self.number = 0, -1
        self.round = Round(None, {}, None)
        self._previous_metric: float | None = None

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        """The batches of an epoch; mines first when a round begins with it. DataError when nothing can be searched."""
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
        """Mined rows for a batch of the current epoch, as `BatchNegatives.draw` gives them; None when there are none."""
        if self.round.negatives is None:
            return None
        return self.round.negatives.draw(rows, self.round.per_query, self.seed, self.epoch) or None

    def watch(self, validate: Validate) -> Validate:
        """`validate`, which also prints a line when the metric fell in an epoch on mined negatives."""

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
        """The round's result when it was finished before, by this run and with these options."""
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
        """Several processes embed a share each; rank 0 searches, the others read its table."""
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
            )
        self.processes.barrier()
        return result or self._read_finished(path)

    def _print(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def metric_drop(name: str, before: float, after: float, mined: MiningResult, tolerance: float = 0.0) -> str | None:
    """A line for the user when a metric fell after mining; None when it did not."""
    if after >= before - tolerance:
        return None
    directions = mined.document["directions"].values()
    above = sum(d["mined_at_or_above_positive"] for d in directions)
    suspected = sum(d["suspected_false_negatives"] for d in directions)
    return (
        f"{name} fell from {before:.4f} to {after:.4f} after mining: perhaps false negatives. {above} of {mined.mined} mined "
        f"score as high as the query's own positive, {suspected} were dropped as suspects; look at {mined.page}"
    )
