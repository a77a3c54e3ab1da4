"""Statistics over the seeds of one recipe, and the directory of such runs, which `mmtune train --seeds N` writes.

RUN/seeds.json names the seeds; RUN/seed-0/artifact, RUN/seed-1/artifact, ... are the models.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from mmtune.errors import ModelError
from mmtune.model.artifact.format import MANIFEST, SEEDS_FILE
from mmtune.runtime.files import read_json

LEVEL = 0.95


class Spread(TypedDict):
    """Mean over the seeds, standard deviation (n - 1), 95% t-interval of the mean (None for one seed), and the value of each seed."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    values: list[float]


def spread_of(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and the 95% t-interval of the mean of the values of several seeds."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Spread(mean=mean, sd=None, low=None, high=None, values=list(values))
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = t_quantile(0.5 + LEVEL / 2, n - 1) * sd / math.sqrt(n)
    return Spread(mean=mean, sd=sd, low=mean - half, high=mean + half, values=list(values))


def t_quantile(p: float, freedom: int) -> float:
    """Return the quantile `p` of Student's t distribution with `freedom` degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, p))


def share_interval(successes: float, trials: int) -> tuple[float, float]:
    """The exact 95% interval of a share (Clopper and Pearson 1934).

    successes: may be a fraction, e.g. of clusters that succeed in part
    """
    from scipy.special import betaincinv

    tail = 0.5 - LEVEL / 2
    low = betaincinv(successes, trials - successes + 1, tail) if successes > 0 else 0.0
    high = betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return float(low), float(high)


def spread_cells(spread: Spread, sign: bool = False) -> list[str]:
    """Mean, sd, interval and single values as cells of a table. sign: with the sign, for differences"""
    form = "{:+.4f}" if sign else "{:.4f}"
    low, high, sd = spread["low"], spread["high"], spread["sd"]
    interval = "" if low is None or high is None else f"[{form.format(low)}, {form.format(high)}]"
    values = ", ".join(form.format(v) for v in spread["values"])
    return [form.format(spread["mean"]), "" if sd is None else f"{sd:.4f}", interval, values]


def spread_table(spread: Mapping[str, Spread]) -> str:
    """A table of text with a line for each name: mean, sd, 95% t-interval of the mean, and the value of each seed."""
    from mmtune.evaluation.result_tables import plain_table

    columns = ["", "mean", "sd", "95% of the mean", "each seed"]
    return plain_table(columns, [[name, *spread_cells(s)] for name, s in spread.items()])


@dataclass(frozen=True)
class SeedRuns:
    """The runs of one recipe with several seeds.

    directory: the directory that contains them
    seeds: the seeds
    """

    directory: Path
    seeds: tuple[int, ...]

    @property
    def runs(self) -> list[Path]:
        """The run directory of each seed."""
        return [self.directory / f"seed-{i}" for i in range(len(self.seeds))]

    @property
    def artifacts(self) -> list[str]:
        """The model of each seed."""
        return [str(run / "artifact") for run in self.runs]


def seed_runs(model: object) -> SeedRuns | None:
    """Return the runs in a directory that `mmtune train --seeds N` wrote; None if `model` is anything else.

    Raises ModelError if they are not finished.
    """
    if not isinstance(model, str | Path) or not (path := Path(model)).is_dir():
        return None
    if (path / SEEDS_FILE).is_file():
        found = SeedRuns(path, tuple(int(s) for s in read_json(path / SEEDS_FILE)["seeds"]))
        missing = [a for a in found.artifacts if not (Path(a) / MANIFEST).is_file()]
        if missing:
            raise ModelError(f"{path}: {missing[0]} is missing or no artifact of a dual encoder")
        return found
    if (path / "seed-0").is_dir() and not (path / MANIFEST).is_file():
        raise ModelError(f"{path}: its runs with several seeds are not finished; repeat `mmtune train ... --seeds N --resume`")
    return None
