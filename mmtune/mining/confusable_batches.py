"""Build batches of confusable rows: near neighbours share a batch, so its in-batch negatives are hard at no extra cost."""

from collections.abc import Callable

import numpy as np

from mmtune.mining.batch_negatives import BatchNegatives

LOOKAHEAD = 16
"""How many batches' worth of the next rows are searched for a row whose group still has room in the batch."""


class ConfusableBatches:
    """A batch plan: `plan(epoch)` returns arrays of row numbers, in which each row occurs as often as in `rows(epoch)`.

    A batch starts with the next unused row. The share `confusable` of it is then filled with neighbours (mined negatives) of
    its rows; if several rows share a neighbour's content, any of them may be taken. The next unused rows fill the rest.

    Every batch has the same share of every group, give or take one row. Otherwise a batch of near neighbours would consist of
    few groups, and the model would learn to separate these and forget the others.

    The plan is deterministic: it depends only on (negatives, rows, seed, epoch). The last batch may be smaller. If a single row
    is left over, it joins the previous batch.
    """

    def __init__(
        self,
        negatives: BatchNegatives,
        rows: Callable[[int], np.ndarray],
        batch_size: int,
        seed: int = 0,
        confusable: float = 0.5,
        groups: np.ndarray | None = None,
    ):
        """Prepare the plan.

        rows: function of the epoch that returns its row numbers in random order
        confusable: share of a batch filled with neighbours, 0..1
        groups: int64 [N], group labels of the rows, 0 for no group
        """
        self.negatives, self.rows, self.batch_size = negatives, rows, batch_size
        self.seed, self.confusable = seed, confusable
        alone = -1 - np.arange(negatives.rows)
        self.group = np.unique(alone if groups is None else np.where(groups == 0, alone, groups), return_inverse=True)[1]

    def __call__(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch, 2])
        order = self.rows(epoch)
        left = np.bincount(order, minlength=self.negatives.rows)
        left_of_group = np.bincount(self.group[order], minlength=self.group.max(initial=0) + 1)
        remaining, head = len(order), 0
        batches = []
        while remaining:
            size = min(self.batch_size, remaining)
            size += remaining - size == 1  # take a single left-over row into this batch
            while not left[order[head]]:
                head += 1
            count = -(-remaining // self.batch_size)
            at_least, at_most = left_of_group // count, -(-left_of_group // count)
            batch = _BatchBuilder(self, left, at_least, at_most, size, rng).build(order[head : head + LOOKAHEAD * size])
            np.subtract.at(left_of_group, self.group[batch], 1)
            remaining -= size
            batches.append(rng.permutation(batch))
        return [batches[i] for i in self._shuffled(batches, rng)]

    def neighbours(self, row: int, left: np.ndarray, rng: np.random.Generator) -> list[int]:
        """Return unused rows whose content is a mined negative of `row`, at most one per negative."""
        out: list[int] = []
        for name in self.negatives.directions:
            for negative in self.negatives.of(name, row).tolist():
                if left[negative] and negative not in out:
                    out.append(negative)
                    continue
                same = self.negatives.same_content(name, negative)
                same = same[left[same] > 0]
                if len(same):
                    one = int(same[rng.integers(len(same))])
                    if one not in out:
                        out.append(one)
        return out

    def _shuffled(self, batches: list[np.ndarray], rng: np.random.Generator) -> list[int]:
        """Return the batches' numbers in random order, with a batch of a different size last, as without mining."""
        order = rng.permutation(len(batches)).tolist()
        return sorted(order, key=lambda i: len(batches[i]) != self.batch_size)


class _BatchBuilder:
    """Builds one batch and removes its rows from `left`.

    left: int64 [N], how many times each row is still to be used in the epoch
    at_least, at_most: int64 [groups], how many rows of each group the batch has to and may take
    """

    def __init__(
        self,
        plan: ConfusableBatches,
        left: np.ndarray,
        at_least: np.ndarray,
        at_most: np.ndarray,
        size: int,
        rng: np.random.Generator,
    ):
        self.plan, self.group, self.left, self.size, self.rng = plan, plan.group, left, size, rng
        self.at_least, self.at_most = at_least, at_most
        self.batch: list[int] = []

    def build(self, ahead: np.ndarray) -> np.ndarray:
        """Return `size` rows. ahead: the next rows of the epoch; at least one of them is in the batch."""
        for row in ahead[self.at_least[self.group[ahead]] > 0].tolist():
            if self.left[row] and self.at_least[self.group[row]] > 0 and len(self.batch) < self.size:
                self._take(row)
        expanded, confusable, position = 0, round(self.plan.confusable * self.size), 0
        while len(self.batch) < self.size:
            if expanded < len(self.batch) and confusable > 0:
                for row in self.plan.neighbours(self.batch[expanded], self.left, self.rng):
                    if len(self.batch) < self.size and confusable > 0 and self.at_most[self.group[row]] > 0 and self.left[row]:
                        self._take(row)
                        confusable -= 1
                expanded += 1
                continue
            while position < len(ahead) and not self._may_take(ahead[position]):
                position += 1
            if position == len(ahead):  # every group ahead has used up its share: drop the limit
                self.at_most, position = np.full_like(self.at_most, self.size), 0
                ahead = ahead if self.left[ahead].any() else np.flatnonzero(self.left)
                continue
            self._take(int(ahead[position]))
            position += 1
        return np.array(self.batch, np.int64)

    def _may_take(self, row: int) -> bool:
        return bool(self.left[row] and self.at_most[self.group[row]] > 0)

    def _take(self, row: int) -> None:
        self.left[row] -= 1
        self.at_most[self.group[row]] -= 1
        self.at_least[self.group[row]] -= 1
        self.batch.append(row)
