"""Batches of confusable rows: near neighbours share a batch, so that the batch's own contrast is hard, at no extra cost."""

from collections.abc import Callable

import numpy as np

from mmtune.mining.negatives import Negatives

LOOK = 16
"""Batches' worth of rows that are looked through for one whose group a batch may still take."""


class ConfusableBatches:
    """A batch plan: `plan(epoch)` -> arrays of row numbers, each row as often as `rows(epoch)` has it.

    A batch begins with the first row that is left; then, up to the share `confusable`, come neighbours of the rows that are in
    already (a neighbour whose content several rows carry stands for any of them), and further rows fill it. Every group takes
    its even share of a batch, give or take one row: a batch of near neighbours that holds few groups teaches to tell those few
    and forgets the others. A pure function of (negatives, rows, seed, epoch). The last batch may be smaller; a
    single left-over row joins the batch before it.
    """

    def __init__(
        self,
        negatives: Negatives,
        rows: Callable[[int], np.ndarray],
        batch_size: int,
        seed: int = 0,
        confusable: float = 0.5,
        groups: np.ndarray | None = None,
    ):
        """rows(epoch): the epoch's row numbers in random order; groups int64 [N]: labels of the rows, 0 for none."""
        self.negatives, self.rows, self.batch_size = negatives, rows, batch_size
        self.seed, self.confusable = seed, confusable
        alone = -1 - np.arange(negatives.rows)
        self.group = np.unique(alone if groups is None else np.where(groups == 0, alone, groups), return_inverse=True)[1]

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 2])
        order = self.rows(epoch)
        left = np.bincount(order, minlength=self.negatives.rows)
        of_group = np.bincount(self.group[order], minlength=self.group.max(initial=0) + 1)
        remaining, head = len(order), 0
        batches = []
        while remaining:
            size = min(self.batch_size, remaining)
            size += remaining - size == 1
            while not left[order[head]]:
                head += 1
            count = -(-remaining // self.batch_size)
            due, share = of_group // count, -(-of_group // count)
            batch = self._batch(order[head : head + LOOK * size], left, due, share, size, rng)
            np.subtract.at(of_group, self.group[batch], 1)
            remaining -= size
            batches.append(rng.permutation(batch))
        return [batches[i] for i in self._shuffled(batches, rng)]

    def _batch(
        self, ahead: np.ndarray, left: np.ndarray, due: np.ndarray, share: np.ndarray, size: int, rng: np.random.Generator
    ) -> np.ndarray:
        """`size` rows (>= one is in `ahead`), taken out of `left`. due, share [groups]: rows that a group must and may give."""
        batch: list[int] = []

        def take(row: int) -> None:
            left[row] -= 1
            share[self.group[row]] -= 1
            due[self.group[row]] -= 1
            batch.append(row)

        for row in ahead[due[self.group[ahead]] > 0].tolist():
            if left[row] and due[self.group[row]] > 0 and len(batch) < size:
                take(row)
        grown, near, place = 0, round(self.confusable * size), 0
        while len(batch) < size:
            if grown < len(batch) and near > 0:
                for found in self._neighbours(batch[grown], left, rng):
                    if len(batch) < size and near > 0 and share[self.group[found]] > 0 and left[found]:
                        take(found)
                        near -= 1
                grown += 1
                continue
            while place < len(ahead) and not (left[ahead[place]] and share[self.group[ahead[place]]] > 0):
                place += 1
            if place == len(ahead):  # only groups that gave their share lie ahead: they give more
                share, place = np.full_like(share, size), 0
                ahead = ahead if left[ahead].any() else np.flatnonzero(left)
                continue
            take(int(ahead[place]))
            place += 1
        return np.array(batch, np.int64)

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
