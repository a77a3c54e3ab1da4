"""Which rows make a batch: a pure function of seed and epoch, so that a resumed run trains on the same batches."""

from collections.abc import Callable

import numpy as np

from mmtune.data.shards.weighted_concat import WeightedConcat


def plan_batches(
    data: WeightedConcat, usable: np.ndarray, batch_size: int, seed: int, how: str = "random"
) -> Callable[[int], list[np.ndarray]]:
    """A function epoch -> its batches, arrays of row numbers, over the `usable` rows (bool [N]).

    how "random": any rows; the last batch may be smaller; a single remaining row joins the batch before it. how "spread": rows of
    one group go to different batches as far as possible, so that a batch holds many groups; batches are of equal size, give or
    take one row.
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
