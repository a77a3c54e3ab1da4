"""The built-in batch plans. A plan is a function from the rows of an epoch to its batches; keyword-only parameters are options."""

import numpy as np

from mmtune.data.loader.epoch_rows import EpochRows
from mmtune.errors import RecipeError


def random_batches(epoch: EpochRows) -> list[np.ndarray]:
    """Cut the shuffled rows into batches. The last batch may be smaller; a single remaining row joins the batch before it."""
    return _cut(epoch.rows, epoch.batch_size)


def spread_batches(epoch: EpochRows) -> list[np.ndarray]:
    """Put rows of one group into different batches if possible; batch sizes differ by at most one."""
    group = epoch.data.labels["group"][epoch.rows]
    group = np.where(group == 0, epoch.data.labels["id"][epoch.rows], group)
    return _deal(epoch.rows, group, epoch)


def group_batches(epoch: EpochRows, *, rows: int, groups: int | None = None, column: str = "group") -> list[np.ndarray]:
    """Make batches of at most `groups` groups with at most `rows` rows of each (PK sampling, arXiv 1703.07737); every row once.

    A group with n rows is divided into ceil(n / rows) parts of nearly equal size. The parts of a group are in different batches
    unless it has more parts than there are batches. Numbers of parts per batch differ by at most one.

    groups: None: batch_size / rows
    column: metadata column with the groups; a row without a value is a group of its own

    Raises RecipeError if no two rows share a group.
    """
    labels = epoch.labels(column)[epoch.rows]
    labels = np.where(labels == 0, -1 - np.arange(len(labels)), labels)
    _, inverse, count = np.unique(labels, return_inverse=True, return_counts=True)
    if count.max() < 2:
        raise RecipeError(
            f"data.batches: no two rows of {epoch.data.spec} share a value of {column!r}; use another column or plan"
        )
    order = np.argsort(epoch.rng.permutation(len(count))[inverse], kind="stable")
    inverse, n = inverse[order], count[inverse[order]]
    first = np.flatnonzero(np.diff(inverse, prepend=-1))
    rank = np.arange(len(order)) - np.repeat(first, n[first])
    part = rank * -(-n // rows) // n  # number of the row's part within its group
    starts = np.flatnonzero(np.diff(inverse, prepend=-1) | np.diff(part, prepend=-1))
    parts = np.split(epoch.rows[order], starts[1:])
    n_batches = -(-len(parts) // (groups or max(epoch.batch_size // rows, 2)))
    if n_batches > 1 and len(parts) // n_batches < 2:  # a batch with a single group would have no negatives
        n_batches -= 1
    return [epoch.rng.permutation(np.concatenate(parts[j::n_batches])) for j in epoch.rng.permutation(n_batches)]


def balanced_batches(epoch: EpochRows, *, column: str = "group") -> list[np.ndarray]:
    """Give every class the same number of rows in the epoch and in each batch, give or take one.

    The epoch keeps its number of rows. A class with fewer rows than its share repeats them in turn; of a larger class, the first
    rows of the random order are used. Rows without a class are left out.
    """
    labels = epoch.labels(column)[epoch.rows]
    rows, labels = epoch.rows[labels != 0], labels[labels != 0]
    classes, inverse = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise RecipeError(f"data.batches: column {column!r} of {epoch.data.spec} has {len(classes)} classes; balancing needs 2")
    share = np.full(len(classes), len(rows) // len(classes))
    share[epoch.rng.permutation(len(classes))[: len(rows) % len(classes)]] += 1
    by_class = np.split(rows[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])
    chosen = [np.resize(of_class, n) for of_class, n in zip(by_class, share, strict=True)]
    return _deal(np.concatenate(chosen), np.repeat(classes, share), epoch)


def one_source_batches(epoch: EpochRows, *, column: str | None = None) -> list[np.ndarray]:
    """Make each batch of rows of one source; batches of all sources are shuffled. A source with a single row is left out.

    column: metadata column with the source; a row without a value belongs to a source of such rows. None: the training set
    """
    source = epoch.training_set[epoch.rows] if column is None else epoch.labels(column)[epoch.rows]
    of_source = [epoch.rows[source == s] for s in np.unique(source)]
    batches = [batch for rows in of_source if len(rows) > 1 for batch in _cut(rows, epoch.batch_size)]
    return [batches[i] for i in epoch.rng.permutation(len(batches))]


def bucket_batches(
    epoch: EpochRows, *, column: str | None = None, modality: str | None = None, sorted_batches: int = 50
) -> list[np.ndarray]:
    """Sort the rows of `sorted_batches` batches at a time by length, cut them into batches, and shuffle all batches.

    column: numeric metadata column with the lengths
    modality: instead of a column, the modality whose stored size in bytes is the length
    """
    lengths = epoch.numbers(column) if column is not None else epoch.data.stored_bytes(str(modality))
    batches = []
    for rows in _cut(epoch.rows, epoch.batch_size * sorted_batches):
        batches += _cut(rows[np.argsort(lengths[rows], kind="stable")], epoch.batch_size)
    return [batches[i] for i in epoch.rng.permutation(len(batches))]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    cuts = list(range(size, len(rows), size))
    if len(rows) % size == 1 and cuts:
        cuts.pop()
    return np.split(rows, cuts)


def _deal(rows: np.ndarray, labels: np.ndarray, epoch: EpochRows) -> list[np.ndarray]:
    """Sort the rows by label, put row j into batch j mod n, and shuffle the batches and the rows in each."""
    _, inverse = np.unique(labels, return_inverse=True)
    order = np.argsort(epoch.rng.permutation(inverse.max() + 1)[inverse], kind="stable")
    n_batches = -(-len(rows) // epoch.batch_size)
    return [epoch.rng.permutation(rows[order[j::n_batches]]) for j in epoch.rng.permutation(n_batches)]
