"""Judgments and runs as files: TREC's columns or JSON lines in, TREC out."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.contracts import Embedded
from mmtune.errors import DataError
from mmtune.evaluate.items import unite
from mmtune.evaluate.relevance import Qrels, relevant
from mmtune.files import atomic_open
from mmtune.similarity import topk

KEYS = {
    "query": ("query", "query_id", "qid", "query-id"),
    "item": ("item", "item_id", "doc_id", "docid", "doc", "candidate", "corpus-id"),
    "grade": ("grade", "relevance", "rel", "score"),
}


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Judgments of a file: TREC lines `query iteration item grade`, or JSON lines {"query":, "item":, "grade":}.

    Ids are row ids. Grades are whole numbers, 0 or less is "not relevant". Raises DataError naming the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; judgments are TREC or JSON lines") from None
    out: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        query, item, grade = _json_line(line, where) if line.lstrip().startswith("{") else _trec_line(line, where)
        try:
            value = float(grade)
        except (TypeError, ValueError):
            raise DataError(f"{where}: the grade {grade!r} is no number") from None
        if value != int(value):
            raise DataError(f"{where}: the grade {grade!r} is not a whole number; nDCG's gains are whole (0, 1, 2, ...)")
        before = out.setdefault(query, {}).setdefault(item, int(value))
        if before != int(value):
            raise DataError(f"{where}: {query!r} and {item!r} are judged {before} above and {int(value)} here; keep one")
    if not out:
        raise DataError(f"{path}: no judgments in it")
    return out


def _trec_line(line: str, where: str) -> tuple[str, str, Any]:
    parts = line.split()
    if len(parts) != 4:
        raise DataError(f"{where}: {len(parts)} columns; TREC judgments have 4: query iteration item grade")
    return parts[0], parts[2], parts[3]


def _json_line(line: str, where: str) -> tuple[str, str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(f"{where}: not valid JSON ({e})") from None
    found = {k: next((row[n] for n in names if n in row), None) for k, names in KEYS.items()}
    if found["query"] is None or found["item"] is None:
        raise DataError(f'{where}: a judgment needs "query" and "item"; this line has {", ".join(row) or "nothing"}')
    return str(found["query"]), str(found["item"]), 1 if found["grade"] is None else found["grade"]


def _plain(name: str) -> str:
    if not name or any(c.isspace() for c in name):
        raise DataError(f"the row id {name!r} holds white space, which TREC files cannot; rename it or use JSON results")
    return name


def _lines(path: str | Path, lines: Iterable[str]) -> None:
    with atomic_open(path) as f:
        for line in lines:
            f.write(line.encode())


def write_qrels(path: str | Path, vectors: Mapping[str, Embedded], pair: tuple[str, str], qrels: Qrels | None = None) -> None:
    """The relevance that evaluation uses for one direction, by item ids, as TREC judgments."""
    queries, candidates = _sides(vectors, pair)

    def lines() -> Iterator[str]:
        for part in relevant(queries, candidates, 4096, qrels):
            for i in range(part.start, part.stop):
                span = slice(part.items.start[i - part.start], part.items.start[i - part.start + 1])
                for c, grade in zip(part.items.values[span], part.grades[span], strict=True):
                    yield f"{_plain(queries.ids[i])} 0 {_plain(candidates.ids[c])} {int(grade)}\n"

    _lines(path, lines())


def write_run(
    path: str | Path, vectors: Mapping[str, Embedded], pair: tuple[str, str], k: int = 100, tag: str = "mmtune"
) -> None:
    """The best `k` candidates of every query of one direction as a TREC run; scores in full, so that ties stay ties."""
    queries, candidates = _sides(vectors, pair)
    within, among = queries is candidates, np.asarray(candidates.vectors)

    def lines() -> Iterator[str]:
        for start in range(0, len(queries), 1024):
            scores, index = topk(queries.vectors[start : start + 1024], among, k + within)
            for i, (s_k, j_k) in enumerate(zip(scores, index, strict=True), start):
                best = [(s, j) for s, j in zip(s_k.tolist(), j_k.tolist(), strict=True) if not (within and j == i)][:k]
                for rank, (s, j) in enumerate(best, 1):
                    yield f"{_plain(queries.ids[i])} Q0 {_plain(candidates.ids[j])} {rank} {s:.9g} {tag}\n"

    _lines(path, lines())


def _sides(vectors: Mapping[str, Embedded], pair: tuple[str, str]) -> Any:
    first = unite(pair[0], vectors[pair[0]])
    return first, first if pair[0] == pair[1] else unite(pair[1], vectors[pair[1]])
