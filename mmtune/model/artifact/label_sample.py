"""A uniform random sample, of bounded size, of the distinct labels of a stream."""

import numpy as np

MAX_LABELS = 1 << 17
"""Labels that a sample has at most: 1 MB in a file."""


def in_sample(labels_N: np.ndarray, level: int) -> np.ndarray:
    """Whether each label belongs to the samples of a level, bool [N]: all at level 0, half of them at level 1, a quarter at 2, ...

    It depends on the label alone (adaptive sampling, Flajolet 1990), so it can be asked of labels that were never seen. Labels are
    uniform hashes of 63 bits, see `stable_label`.
    """
    return np.asarray(labels_N, np.int64) >> np.int64(63 - level) == 0


class LabelSample:
    """The distinct labels that were added, or, if there are more than `size`, those of the lowest level that fit.

    It does not depend on the order in which the labels come, nor on how often.

    labels, level: an earlier sample to go on with
    """

    def __init__(self, labels: np.ndarray | None = None, level: int = 0, size: int = MAX_LABELS):
        self.level, self.size = level, size
        self._labels: set[int] = set()
        if labels is not None:
            self.add(labels)

    @property
    def labels(self) -> np.ndarray:
        """The labels of the sample, int64, ascending."""
        return np.array(sorted(self._labels), np.int64)

    def add(self, labels_N: np.ndarray) -> None:
        """Add labels; 0 means no label."""
        labels = np.unique(labels_N)
        labels = labels[labels != 0]
        self._labels.update(labels[in_sample(labels, self.level)].tolist())
        while len(self._labels) > self.size:
            self.level += 1
            kept = self.labels
            self._labels = set(kept[in_sample(kept, self.level)].tolist())
