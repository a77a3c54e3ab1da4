"""Write the relevance judgments and the run (ranked results) of one direction as TREC files, for other evaluation tools."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.relevance.items import Items, unique_items
from mmtune.relevance.judgments import Qrels
from mmtune.relevance.positives import relevant_blocks
from mmtune.runtime.files import atomic_open
from mmtune.search.exact import topk


def write_qrels(path: str | Path, vectors: Mapping[str, Embeddings], pair: tuple[str, str], qrels: Qrels | None = None) -> None:
    """Write the relevance that evaluation uses for the direction `pair` (query modality, candidate modality) as TREC qrels.

    The file has item ids; with `qrels` it has these judgments instead of the relevance by row and group.
    """
    queries, candidates = _sides(vectors, pair)

    def lines() -> Iterator[str]:
        for block in relevant_blocks(queries, candidates, 4096, qrels):
            for i in range(block.start, block.stop):
                span = slice(block.items.start[i - block.start], block.items.start[i - block.start + 1])
                for c, grade in zip(block.items.values[span], block.grades[span], strict=True):
                    yield f"{_checked_id(queries.ids[i])} 0 {_checked_id(candidates.ids[c])} {int(grade)}\n"

    _write_lines(path, lines())


def write_run(
    path: str | Path, vectors: Mapping[str, Embeddings], pair: tuple[str, str], k: int = 100, tag: str = "mmtune"
) -> None:
    """Write the best `k` candidates of every query of the direction `pair` as a TREC run.

    Scores are written with all their digits, so that equal scores stay equal.
    """
    queries, candidates = _sides(vectors, pair)
    within, candidate_vectors = queries is candidates, np.asarray(candidates.vectors)

    def lines() -> Iterator[str]:
        for start in range(0, len(queries), 1024):
            scores, index = topk(queries.query_vectors[start : start + 1024], candidate_vectors, k + within)
            for i, (s_k, j_k) in enumerate(zip(scores, index, strict=True), start):
                best = [(s, j) for s, j in zip(s_k.tolist(), j_k.tolist(), strict=True) if not (within and j == i)][:k]
                for rank, (s, j) in enumerate(best, 1):
                    yield f"{_checked_id(queries.ids[i])} Q0 {_checked_id(candidates.ids[j])} {rank} {s:.9g} {tag}\n"

    _write_lines(path, lines())


def _sides(vectors: Mapping[str, Embeddings], pair: tuple[str, str]) -> tuple[Items, Items]:
    queries = unique_items(pair[0], vectors[pair[0]])
    return queries, queries if pair[0] == pair[1] else unique_items(pair[1], vectors[pair[1]])


def _checked_id(row_id: str) -> str:
    if not row_id or any(c.isspace() for c in row_id):
        raise DataError(
            f"the row id {row_id!r} contains white space, which TREC files do not allow; rename it or use JSON results"
        )
    return row_id


def _write_lines(path: str | Path, lines: Iterable[str]) -> None:
    with atomic_open(path) as f:
        for line in lines:
            f.write(line.encode())
