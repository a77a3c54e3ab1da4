"""Decide the split of rows: by a hash of what must stay together, by shares within strata, or by time."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmtune.pairs.hash_split import hash_fraction, hash_split

NEARLY = 0.49
"""Units that the shares of the whole corpus count at most in a stratum: less than half a unit, so they decide where a stratum is too small to
be divided, and hardly change one that is not."""


@dataclass(frozen=True)
class SplitRow:
    """What the split of a row depends on.

    id: its id
    keys: values that must not be in two splits, such as its group, recording and machine; without any, the row is on its own
    stratum: the class whose shares are to be equal in all splits; "" if there is none
    time: seconds since 1970; None if there is none
    kept: the split that it had before; None for a new row
    """

    id: str
    keys: tuple[tuple[str, str], ...]
    stratum: str = ""
    time: float | None = None
    kept: str | None = None


def parse_time(cell: object) -> float | None:
    """A time in seconds since 1970: a number (seconds, or milliseconds above 1e11), or an ISO 8601 date or time (UTC without a zone)."""
    if isinstance(cell, bool) or cell in (None, ""):
        return None
    try:
        value = float(str(cell))
        return (value / 1000 if abs(value) > 1e11 else value) if np.isfinite(value) else None
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(str(cell).strip())
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def units_of(rows: Sequence[SplitRow]) -> tuple[np.ndarray, list[str]]:
    """Number the sets of rows that must stay together: rows that share a key, directly or through others.

    Returns (unit of each row, name of each unit). The name is the smallest of its keys (or the id of a row without keys), so it does
    not depend on the order of the rows, nor on rows of other units.
    """
    numbers: dict[tuple[str, str], int] = {}
    edges = [(row, len(rows) + numbers.setdefault(key, len(numbers))) for row, r in enumerate(rows) for key in r.keys]
    size = len(rows) + len(numbers)
    pairs = np.array(edges, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    names: dict[int, str] = {}
    for row, r in enumerate(rows):
        own = min((f"{column}={value}" for column, value in r.keys), default=f"id={r.id}")
        unit = int(component[row])
        names[unit] = min(names.get(unit, own), own)
    order = {unit: n for n, unit in enumerate(names)}
    return np.array([order[int(component[row])] for row in range(len(rows))], np.int64), list(names.values())


def split_by_hash(names: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """The split of each unit by its name alone: it never changes, whatever is added."""
    return [hash_split(name, shares, seed) for name in names]


def split_by_strata(
    rows: Sequence[SplitRow],
    units: np.ndarray,
    names: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    kept: Mapping[int, str],
) -> list[str]:
    """Give each stratum, and the corpus, its shares: new units go, in the order of their hashes, to the split that lacks most rows.

    kept: the split that a unit had before, which it keeps
    """
    sizes = np.bincount(units, minlength=len(names))
    strata: list[Counter[str]] = [Counter() for _ in names]
    for row, unit in zip(rows, units.tolist(), strict=True):
        strata[unit][row.stratum] += 1
    stratum = [min(c, key=lambda s, c=c: (-c[s], s)) for c in strata]  # type: ignore[misc]
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    every: Counter[str] = Counter()
    for unit, split in kept.items():
        counts[stratum[unit]][split] += int(sizes[unit])
        every[split] += int(sizes[unit])
    found = dict(kept)
    # large units first would fit better, but the order must not depend on how a unit grows
    for unit in sorted(set(range(len(names))) - kept.keys(), key=lambda u: (hash_fraction(names[u], seed), names[u])):
        have, size = counts[stratum[unit]], int(sizes[unit])
        lacks = {
            s: _lack(share, have, s, size) + np.clip(_lack(share, every, s, size), -NEARLY, NEARLY)
            for s, share in shares.items()
        }
        split = max(lacks, key=lacks.__getitem__)
        have[split] += size
        every[split] += size
        found[unit] = split
    return [found[unit] for unit in range(len(names))]


def _lack(share: float, have: Counter[str], split: str, size: int) -> float:
    """How many units of `size` rows a split lacks if one more is distributed."""
    return (share * (sum(have.values()) + size) - have[split]) / size


def split_by_time(
    rows: Sequence[SplitRow], units: np.ndarray, names: Sequence[str], shares: Mapping[str, float], cuts: Sequence[float]
) -> tuple[list[str], list[float]]:
    """Earlier rows go to earlier splits; a unit goes to the split of its latest row, so that nothing later is in training.

    cuts: the times at which the second, third ... split begin; without any, they are chosen so that the shares of the rows fit

    Returns (split of each unit, cuts).
    """
    latest = np.full(len(names), -np.inf)
    np.maximum.at(latest, units, np.array([r.time for r in rows], np.float64))
    if not cuts:
        of_rows = np.sort(latest[units])
        at = np.cumsum(list(shares.values()))[:-1] * len(of_rows)
        cuts = [float(of_rows[min(int(round(a)), len(of_rows) - 1)]) for a in at]
    order = list(shares)
    return [order[int(np.searchsorted(np.array(cuts), time, side="right"))] for time in latest], list(cuts)
