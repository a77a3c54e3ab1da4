"""Search rows for duplicates and near-duplicates, and decide which form a group, which are copies, and which leak between splits."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mmtune import modalities
from mmtune.data.identity_labels import stable_label
from mmtune.pairs.content_hashes import hash_rows
from mmtune.pairs.drop_counts import DropCounts
from mmtune.pairs.hash_neighbours import hash_pairs
from mmtune.pairs.near_texts import text_pairs
from mmtune.pairs.source_rows import SourceRows
from mmtune.runtime.progress import Progress


@dataclass
class Corpus:
    """The rows of all sources, and the hashes of their values.

    ids, groups: of each row
    other: number of the other source that a row comes from; -1 for the source itself
    contents: modality -> label of the content of each row; 0 for a row without one
    near: modality -> perceptual hash of each row, and whether it has one
    texts: modality -> the values of a language modality, "" for a row without one
    """

    names: Sequence[str]
    ids: list[str] = field(default_factory=list)
    groups: list[str | None] = field(default_factory=list)
    other: list[int] = field(default_factory=list)
    contents: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    near: dict[str, list[int | None]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, rows: SourceRows, other: int, log: Path, workers: int, drops: DropCounts, progress: Progress) -> None:
        """Hash the rows of a source. Values that cannot be compared are counted in `drops` as "comparisons"."""
        for row, hashes in hash_rows(rows.rows(drops), self.names, log, workers, progress):
            self.ids.append(row.id)
            self.groups.append(row.group)
            self.other.append(other)
            for name in self.names:
                found = hashes.get(name)
                if found is not None and found.problem:
                    drops.add(f"{name}: {found.problem}", row.id, unit="comparisons")
                self.contents[name].append(stable_label(found.exact.encode()) if found and found.exact else 0)
                self.near[name].append(found.near if found else None)
                if modalities.get(name).language:
                    value = row.values.get(name, b"")
                    self.texts[name].append(value.decode("utf-8", "replace") if isinstance(value, bytes) else "")


def near_contents(corpus: Corpus, name: str, threshold: float, distance: int | None, quiet: bool) -> np.ndarray:
    """Number the contents of one modality: rows with (nearly) the same content have the same number. Returns int64 [N], 0 for none.

    threshold: Jaccard similarity from which texts are near-duplicates
    distance: bits in which perceptual hashes may differ; None means that of the modality, -1 compares bytes only
    """
    exact = np.array(corpus.contents[name], np.int64)
    kinds, first, inverse = np.unique(exact, return_index=True, return_inverse=True)
    edges = [np.zeros((0, 2), np.int64)]
    if modalities.get(name).language and threshold < 1:
        texts = [corpus.texts[name][row] for row in first.tolist()]
        with Progress(f"compare {name}", len(texts), quiet=quiet) as progress:
            edges.append(text_pairs(texts, threshold, progress))
    bits = modalities.get(name).near_duplicate_distance if distance is None else distance
    keyed = [(k, key) for k, row in enumerate(first.tolist()) if (key := corpus.near[name][row]) is not None]
    if keyed and bits >= 0:
        positions = np.array([k for k, _ in keyed], np.int64)
        hashes, of_hash = np.unique(np.array([key for _, key in keyed], np.uint64), return_inverse=True)
        _, owner = np.unique(of_hash, return_index=True)
        edges.append(np.stack([positions, positions[owner[of_hash]]], 1))
        edges.append(positions[owner[hash_pairs(hashes, bits)]])
    pairs = np.concatenate(edges)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(kinds), len(kinds)))
    _, component = connected_components(graph, directed=False)
    return np.where(exact == 0, 0, component[inverse].astype(np.int64) + 1)


def link_rows(corpus: Corpus, contents: Mapping[str, np.ndarray], by: Sequence[str]) -> np.ndarray:
    """Number the rows: those that share a content of one of the modalities `by`, directly or through others, have one number."""
    count = len(corpus.ids)
    edges = [np.zeros((0, 2), np.int64)]
    for name in by:
        rows = np.flatnonzero(contents[name])
        _, first, inverse = np.unique(contents[name][rows], return_index=True, return_inverse=True)
        edges.append(np.stack([rows, rows[first][inverse]], 1))
    pairs = np.concatenate(edges)
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    return component.astype(np.int64)


@dataclass
class Decision:
    """What happens to the rows of the source.

    groups: row -> new group, for rows of several that are the same
    leaks: row -> (number of the other source, id of the row there)
    copies: row -> earlier row that it repeats
    contradictions: linked rows of different given groups, which are left as they are
    """

    groups: dict[int, str] = field(default_factory=dict)
    leaks: dict[int, tuple[int, str]] = field(default_factory=dict)
    copies: dict[int, int] = field(default_factory=dict)
    contradictions: list[list[int]] = field(default_factory=list)


def decide(corpus: Corpus, contents: Mapping[str, np.ndarray], linked: np.ndarray, action: str) -> Decision:
    """Decide what happens to each row: `linked` is the result of `link_rows`, `contents` that of `near_contents` of every modality."""
    decision = Decision()
    order = np.argsort(linked, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(linked[order])) + 1):
        if len(rows) < 2:
            continue
        members = rows.tolist()
        others = [r for r in members if corpus.other[r] >= 0]
        own = [r for r in members if corpus.other[r] < 0]
        if others:
            decision.leaks |= dict.fromkeys(own, (corpus.other[others[0]], corpus.ids[others[0]]))
            continue
        first: dict[tuple[int, ...], int] = {}
        for row in own:
            key = tuple(int(contents[name][row]) for name in contents)
            if first.setdefault(key, row) != row and action == "drop" and _agree(corpus, row, first[key]):
                decision.copies[row] = first[key]
        given = {corpus.groups[r] for r in own if corpus.groups[r] is not None}
        if len(given) > 1:
            decision.contradictions.append(own)
        else:
            group = next(iter(given), None) or f"same:{corpus.ids[own[0]]}"
            decision.groups |= {r: group for r in own if corpus.groups[r] is None} if len(own) > 1 else {}
    return decision


def _agree(corpus: Corpus, row: int, other: int) -> bool:
    """Whether the given groups of two rows do not contradict each other."""
    return corpus.groups[row] == corpus.groups[other] or None in (corpus.groups[row], corpus.groups[other])
