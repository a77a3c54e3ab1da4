"""Batches of confusable rows: near neighbours share a batch, so that the batch's own contrast is hard, at no extra cost."""

from collections.abc import Callable

import numpy as np

from mmtune.mining.use import Negatives


class ConfusableBatches:
    """A batch plan: `plan(epoch)` -> arrays of row numbers, each row as often as `rows(epoch)` has it.

    A batch begins with the first row that is left; then, up to the share `confusable`, come neighbours of the rows that are in
    already (a neighbour whose content several rows carry stands for any of them), and further rows fill it. A pure function of
    (negatives, rows, seed, epoch). The last batch may be smaller; a single left-over row joins the batch before it.
    """

    def __init__(
        self,
        negatives: Negatives,
        rows: Callable[[int], np.ndarray],
        batch_size: int,
        seed: int = 0,
        confusable: float = 0.5,
    ):
        """rows(epoch): the epoch's row numbers in random order."""
        self.negatives, self.rows, self.batch_size = negatives, rows, batch_size
        self.seed, self.confusable = seed, confusable

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 2])
        order = self.rows(epoch).tolist()
        left = np.bincount(order, minlength=self.negatives.rows)
        remaining, head = len(order), 0
        batches = []
        while remaining:
            size = min(self.batch_size, remaining)
            size += remaining - size == 1
            batch: list[int] = []
            grown, near = 0, round(self.confusable * size)
            while len(batch) < size:
                if len(batch) <= near and grown < len(batch):
                    for found in self._neighbours(batch[grown], left, rng)[: min(near + 1, size) - len(batch)]:
                        left[found] -= 1
                        batch.append(found)
                    grown += 1
                    continue
                while not left[order[head]]:
                    head += 1
                left[order[head]] -= 1
                batch.append(order[head])
            remaining -= len(batch)
            batches.append(rng.permutation(np.array(batch, np.int64)))
        return [batches[i] for i in self._shuffled(batches, rng)]

    def _neighbours(self, row: int, left: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Rows still left that carry what is confusable with `row`, one for each of its negatives."""
        out: list[int] = []
        for name in self.negatives.directions:
            for found in self.negatives.of(name, row).tolist():
                if left[found] and found not in out:
                    out.append(found)
                    continue
                alike = self.negatives.same_content(name, found)
                alike = alike[left[alike] > 0]
                if len(alike):
                    one = int(alike[rng.integers(len(alike))])
                    if one not in out:
                        out.append(one)
        return out

    def _shuffled(self, batches: list[np.ndarray], rng: np.random.Generator) -> list[int]:
        """Any order, but the batch of another size last, as in a plain plan."""
        order = rng.permutation(len(batches)).tolist()
        return sorted(order, key=lambda i: len(batches[i]) != self.batch_size)
