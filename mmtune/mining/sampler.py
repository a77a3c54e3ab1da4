"""Batches of confusable rows: near neighbours share a batch, so that the batch's own contrast is hard, at no extra cost."""

import numpy as np

from mmtune.mining.use import Negatives


class ConfusableBatches:
    """A batch plan: `plan(epoch)` -> arrays of row numbers, each usable row exactly once.

    A batch begins with a random row that is left; then, up to the share `confusable`, come neighbours of the rows that are in
    already (a neighbour whose content several rows carry stands for any of them), and random rows fill it. A pure function of
    (negatives, rows, seed, epoch). The last batch may be smaller; a single left-over row joins the batch before it.
    """

    def __init__(self, negatives: Negatives, usable: np.ndarray, batch_size: int, seed: int = 0, confusable: float = 0.5):
        self.negatives, self.batch_size, self.seed, self.confusable = negatives, batch_size, seed, confusable
        self.rows = np.flatnonzero(usable) if usable.dtype == bool else np.asarray(usable, np.int64)

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 2])
        left = np.zeros(self.negatives.rows, bool)
        left[self.rows] = True
        order = rng.permutation(self.rows).tolist()
        head, batches = 0, []
        remaining = len(order)
        while remaining:
            size = min(self.batch_size, remaining)
            if remaining - size == 1:
                size += 1
            batch: list[int] = []
            grown, near = 0, round(self.confusable * size)
            while len(batch) < size:
                if len(batch) < near + 1 and grown < len(batch):
                    row = batch[grown]
                    grown += 1
                    for found in self._neighbours(row, left, rng):
                        if len(batch) >= min(near + 1, size):
                            break
                        left[found] = False
                        batch.append(found)
                    continue
                while not left[order[head]]:
                    head += 1
                row = order[head]
                left[row] = False
                batch.append(row)
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
                alike = alike[left[alike]]
                if len(alike):
                    one = int(alike[rng.integers(len(alike))])
                    if one not in out:
                        out.append(one)
        return out

    def _shuffled(self, batches: list[np.ndarray], rng: np.random.Generator) -> list[int]:
        """Any order, but short batches last: the first seeds find the most neighbours, and training should not notice."""
        order = rng.permutation(len(batches)).tolist()
        return sorted(order, key=lambda i: -min(len(batches[i]), self.batch_size))
