"""Mining in rounds while training: embed with the weights of now, search, guard, train on what was found, again.

`Rounds` is a batch plan and a source of extra rows for the one training loop; it holds no state that the run's directory does
not: round k's table is RUN/mining/round-k.parquet, and a killed run finds it there.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmtune import modalities
from mmtune.contracts import Pair, direction
from mmtune.embedding.embed_rows import embed_data
from mmtune.mining.confusable_batches import ConfusableBatches
from mmtune.mining.mine_vectors import mine_vectors, mined_directions, table_settings
from mmtune.mining.mining_result import MiningResult
from mmtune.mining.negatives import Negatives
from mmtune.mining.negatives_table import read_meta
from mmtune.recipe.mining_block import MiningOptions
from mmtune.runtime.distributed import SINGLE_PROCESS, Processes
from mmtune.runtime.files import read_json

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.model.dual_encoder import Model


def round_epochs(epochs: float, rounds: int) -> list[int]:
    """The epochs that begin with mining, evenly spread. The first epochs run on random batches: the neighbours of an untrained
    model are noise (ANCE, arXiv 2007.00808, warms up for the same reason)."""
    whole = max(int(np.ceil(epochs)), 1)
    return sorted({whole * (i + 1) // (rounds + 1) for i in range(rounds)})


def columns_of(options: MiningOptions, names: Sequence[str]) -> dict[str, int]:
    """Columns a query by direction. Unless the options say: 4 where candidates are words, which cost next to nothing, and
    none elsewhere; 1 everywhere when no direction has words to find. (Candidates that lie in files double a step's cost.)"""
    cheap = {name: modalities.get(name.partition("->")[2]).language for name in names}
    usual = {name: (4 if cheap[name] else 0) if any(cheap.values()) else 1 for name in names}
    given = {name: options.for_direction(name).use.negatives_per_query for name in names}
    return {name: usual[name] if (n := given[name]) is None else n for name in names}


class Rounds:
    """What training asks: `plan(epoch)` -> batches, `extra(rows)` -> rows that join a batch as candidates, `watch(validate)`.

    Before the first round batches are those of `plain` and nothing is extra. Batches are as many in every epoch. A table of the
    user's own (`options.table`) serves from the first epoch on instead, and nothing is mined.
    """

    def __init__(
        self,
        model: "Model",
        data: "Data | WeightedConcat",
        plain: Callable[[int], Sequence[np.ndarray]],
        options: MiningOptions,
        directory: str | Path,
        *,
        pairs: Sequence[Pair],
        epochs: float,
        batch_size: int,
        seed: int = 0,
        verifier: Any = None,
        processes: Processes = SINGLE_PROCESS,
        quiet: bool = False,
        base: str = "",
    ):
        """base: fingerprint of the model that training starts from, which a table of the user's own was mined with."""
        self.model, self.data, self.plain, self.options, self.pairs = model, data, plain, options, list(pairs)
        self.directory, self.batch_size, self.seed, self.verifier, self.quiet = (
            Path(directory),
            batch_size,
            seed,
            verifier,
            quiet,
        )
        self.processes = processes
        self.base = base
        self.starts = [0] if options.table else round_epochs(epochs, options.rounds)
        self.epoch, self.number = 0, -1
        self.mined: Mined | None = None
        self.negatives: Negatives | None = None
        self.columns: dict[str, int] = {}
        self._before: tuple[int, float] | None = None

    def plan(self, epoch: int) -> Sequence[np.ndarray]:
        """The batches of an epoch; mines first when a round begins with it. DataError when nothing can be searched."""
        self.epoch = epoch
        number = sum(start <= epoch for start in self.starts) - 1
        if number != self.number:
            self._begin(number)
        rows = self.plain(epoch)
        if self.negatives is None or not self.options.use.confusable:
            return rows
        usable = np.concatenate(rows)
        share, groups = self.options.use.confusable, self.data.labels["group"]
        return ConfusableBatches(self.negatives, lambda _: usable, self.batch_size, self.seed, share, groups)(epoch)

    def extra(self, rows: np.ndarray) -> dict[str, np.ndarray] | None:
        """Mined rows for a batch of the current epoch, as `Negatives.extra` gives them; None when there are none."""
        if self.negatives is None:
            return None
        return self.negatives.extra(rows, self.columns, self.seed, self.epoch) or None

    def _begin(self, number: int) -> None:
        self.number, self.negatives, self.mined = number, None, None
        if number < 0:
            return
        if self.options.table:
            own = Negatives(self.options.table, self.data, self.base, self.options.allow_stale)
            self._take(own)
            for line in own.notes:
                self._say(f"mining: {line}")
            return
        path = self.directory / f"round-{number}.parquet"
        self.mined = self._there(path) if self.processes.broadcast(self._there(path) is not None) else self._mine(path)
        assert self.mined is not None
        if self.mined.mined:
            self._take(Negatives(path, self.data, self.mined.document["fingerprint"]))
        for line in [*self.mined.document["warnings"], *(self.negatives.notes if self.negatives else [])]:
            self._say(f"mining round {number + 1}: {line}")
        self._say(f"mining round {number + 1}: {self.mined.mined} negatives, audit {self.mined.page}")

    def _take(self, negatives: Negatives) -> None:
        self.negatives, self.columns = negatives, columns_of(self.options, negatives.directions)

    def _names(self) -> list[str]:
        asked = self.options.directions
        used = {m for pair in self.pairs for m in pair} | {m for d in asked or [] for m in d.split("->")}
        return [m for m in self.data.modalities if m in used]

    def _there(self, path: Path) -> Mined | None:
        """The round's table when it was finished before, by this run and with these options."""
        audit, page = (path.with_name(path.name + end) for end in (".audit.json", ".audit.html"))
        if not (path.exists() and audit.exists() and page.exists()):
            return None
        meta, document = read_meta(path), read_json(audit)
        todo = [direction(a, b) for a, b in directions(self._names(), self.options.directions, self.pairs)]
        if meta["fingerprint"] != document["fingerprint"] or meta["settings"] != settings(self.options, todo):
            return None
        return Mined(path, audit, page, sum(d["mined"] for d in document["directions"].values()), document)

    def _mine(self, path: Path) -> Mined | None:
        """Several processes embed a share each; the first searches, the others read its table."""
        embedded = embed_data(self.model, self.data, self._names(), processes=self.processes)
        found = None
        if self.processes.is_main_process:
            found = mine(
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
        return found or self._there(path)

    def watch(self, validate: Callable[["Model"], dict[str, float]]) -> Callable[["Model"], dict[str, float]]:
        """`validate`, that says first when the chosen metric fell in an epoch on mined negatives."""

        def watched(model: "Model") -> dict[str, float]:
            values = validate(model)
            before, self._before = self._before, (self.epoch, values["metric"])
            if before is not None and self.mined is not None:
                line = fallen("the validation metric", before[1], values["metric"], self.mined)
                if line:
                    self._say(line)
            return values

        return watched

    def _say(self, line: str) -> None:
        if not self.quiet:
            print(line, file=sys.stderr, flush=True)


def fallen(name: str, before: float, after: float, mined: Mined, tolerance: float = 0.0) -> str | None:
    """A line to print first when a metric fell after mining; None when it did not."""
    if after >= before - tolerance:
        return None
    found = mined.document["directions"].values()
    above = sum(d["mined_at_or_above_positive"] for d in found)
    suspected = sum(d["suspected_false_negatives"] for d in found)
    return (
        f"{name} fell from {before:.4f} to {after:.4f} after mining: perhaps false negatives. {above} of {mined.mined} mined "
        f"score as high as the query's own positive, {suspected} were dropped as suspects; look at {mined.page}"
    )
