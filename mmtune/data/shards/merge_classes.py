"""Merge the classes that were counted in the shards of a dataset (`shard_classes`) in memory for the classes, not for the rows."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmtune.data.shards.shard_classes import ClassQuery, read_classes

BUCKET_ROWS = 1 << 22
"""Pairs (content, class) that are sorted in memory at a time."""
PAIR_BYTES = 16
MAX_BUCKETS = 1 << 8
"""So many files are open at a time."""
PENDING = 1 << 16
"""New classes are merged with the known ones when there are so many, or as many as known ones."""


@dataclass(frozen=True)
class ContentClasses:
    """The classes of the distinct contents of one modality.

    total: number of contents
    without, several: how many of them have no class, and several
    contents, numbers: [e], contents whose rows have several classes (number -1), or of which some rows only have a class (its
        number); `contents` is ascending
    """

    total: int
    without: int
    several: int
    contents: np.ndarray
    numbers: np.ndarray


@dataclass(frozen=True)
class CountedClasses:
    """The classes of a dataset.

    labels: int64 [C], ascending: the number of a class is its position
    names: strings [C]
    by_modality: modality -> the classes of its contents
    """

    labels: np.ndarray
    names: pa.Array
    by_modality: dict[str, ContentClasses] = field(default_factory=dict)


def merge_classes(files: Sequence[Path], number: int, query: ClassQuery, folder: Path) -> CountedClasses:
    """Merge the files of all shards for a query.

    number: the query's number in the files
    folder: directory for temporary files, 16 bytes for each pair (content, class) of a shard
    """
    labels, names = _merge_labels(files, number)
    by_modality = {m: _merge_contents(files, number, m, labels, folder) for m in query.modalities}
    return CountedClasses(labels, names, by_modality)


def _merge_labels(files: Sequence[Path], number: int) -> tuple[np.ndarray, pa.Array]:
    labels, names = np.zeros(0, np.int64), pa.array([], pa.large_string())
    new_labels: list[np.ndarray] = []
    new_names: list[pa.Array] = []
    for i, path in enumerate(files):
        found = read_classes(path, number)
        new = ~np.isin(found.labels, labels)
        new_labels.append(found.labels[new])
        new_names.append(pa.array(found.names, pa.large_string()).filter(pa.array(new)))
        if i == len(files) - 1 or sum(map(len, new_labels)) > max(PENDING, len(labels)):
            labels, first = np.unique(np.concatenate([labels, *new_labels]), return_index=True)
            names = pa.concat_arrays([names, *new_names]).take(pa.array(first))
            new_labels, new_names = [], []
    return labels, names


def _merge_contents(files: Sequence[Path], number: int, modality: str, labels: np.ndarray, folder: Path) -> ContentClasses:
    """Find the contents of which not all rows have the same class: pairs are divided by their content, and each part is sorted."""
    at_most = sum(path.stat().st_size for path in files) // PAIR_BYTES
    buckets = min(MAX_BUCKETS, 1 << (at_most // BUCKET_ROWS).bit_length())
    borders = np.array([i * (2**63 // buckets) for i in range(1, buckets)], np.int64)
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(open(folder / f"{i}.pairs", "wb")) for i in range(buckets)]
        for path in files:
            pairs = read_classes(path, number, [modality]).contents[modality]  # sorted by content
            for part, of_part in zip(parts, np.split(pairs, np.searchsorted(pairs[:, 0], borders)), strict=True):
                part.write(np.ascontiguousarray(of_part, np.int64).data)
    found = []
    for i in range(buckets):
        found.append(_classes_of_contents(np.fromfile(folder / f"{i}.pairs", np.int64).reshape(-1, 2), labels))
        (folder / f"{i}.pairs").unlink()
    return ContentClasses(
        sum(x.total for x in found),
        sum(x.without for x in found),
        sum(x.several for x in found),
        np.concatenate([x.contents for x in found]),
        np.concatenate([x.numbers for x in found]),
    )


def _classes_of_contents(pairs: np.ndarray, labels: np.ndarray) -> ContentClasses:
    """pairs: [n, 2] (content, class label or 0); labels: [C] of all classes, ascending"""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    pairs = pairs[np.any(np.diff(pairs, axis=0, prepend=-1), axis=1)]
    contents, start, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    lacking = pairs[start, 1] == 0  # 0 comes first
    classes = count - lacking
    partly = lacking & (classes == 1)
    of_partly = np.searchsorted(labels, pairs[start[partly] + 1, 1])
    numbers = np.full(len(contents), -1, np.int64)
    numbers[partly] = of_partly
    differing = partly | (classes > 1)
    return ContentClasses(
        len(contents), int((classes == 0).sum()), int((classes > 1).sum()), contents[differing], numbers[differing]
    )
