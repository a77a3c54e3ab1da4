"""Assign rows to batches. The result depends only on the data, the seed and the epoch, so a resumed run gets the same batches."""

from collections.abc import Callable

import numpy as np

from mmtune.data.shards.weighted_concat import WeightedConcat


def plan_batches(
    data: WeightedConcat, usable: np.ndarray, batch_size: int, seed: int, how: str = "random"
) -> Callable[[int], list[np.ndarray]]:
    """Return a function that takes an epoch number and returns the epoch's batches, each an array of row numbers.

    data: the training data
    usable: bool [N], rows that may be used
    batch_size: rows per batch
    seed: random seed
    how: "random" shuffles the rows; the last batch may be smaller, and a single remaining row is added to the batch before it.
        "spread" puts rows of one group into different batches if possible, so that a batch contains many groups; batch sizes
        differ by at most one
    """

    def batches(epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, epoch, 1])
        rows = data.epoch_rows(rng)
        rows = rows[usable[rows]]
        if how == "spread":
            return _spread_groups(rows, data, batch_size, rng)
        cuts = list(range(batch_size, len(rows), batch_size))
        if len(rows) % batch_size == 1 and cuts:
            cuts.pop()
        return np.split(rows, cuts)

    return batches


def _spread_groups(rows: np.ndarray, data: WeightedConcat, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Sort the rows by group, put row j into batch j mod n, and shuffle the batches and the rows in each."""
    group = data.labels["group"][rows]
    group = np.where(group == 0, data.labels["id"][rows], group)
    _, inverse = np.unique(group, return_inverse=True)
    order = np.argsort(rng.permutation(inverse.max() + 1)[inverse], kind="stable")
    n_batches = -(-len(rows) // batch_size)
    return [rng.permutation(rows[order[j::n_batches]]) for j in rng.permutation(n_batches)]
