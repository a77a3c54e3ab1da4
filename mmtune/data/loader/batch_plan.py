"""Which rows make a batch: a pure function of (seed, epoch), so that a resumed run sees what the killed one would have."""

from collections.abc import Callable

import numpy as np

from mmtune.data.shards.weighted_concat import WeightedConcat


def plan(
    data: WeightedConcat, usable: np.ndarray, batch_size: int, seed: int, how: str = "random"
) -> Callable[[int], list[np.ndarray]]:
    """epoch -> its batches, arrays of row numbers, over the `usable` rows (bool [N]). "random": any rows; the last batch may
    be smaller; a single left-over row joins the batch before it. "spread": rows of one group are dealt to different batches
    as far as possible, so that a batch holds many groups; batches are of equal size, give or take one row."""

    def batches(epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, epoch, 1])
        rows = data.epoch_rows(rng)
        rows = rows[usable[rows]]
        if how == "spread":
            return _spread(rows, data, batch_size, rng)
        cuts = list(range(batch_size, len(rows), batch_size))
        if len(rows) % batch_size == 1 and cuts:
            cuts.pop()
        return np.split(rows, cuts)

    return batches


def _spread(rows: np.ndarray, data: WeightedConcat, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Deal the rows like cards: sorted by group, row j goes to batch j mod n; batches and their insides are shuffled again."""
    group = data.labels["group"][rows]
    group = np.where(group == 0, data.labels["id"][rows], group)
    _, inverse = np.unique(group, return_inverse=True)
    order = np.argsort(rng.permutation(inverse.max() + 1)[inverse], kind="stable")
    count = -(-len(rows) // batch_size)
    return [rng.permutation(rows[order[j::count]]) for j in rng.permutation(count)]
