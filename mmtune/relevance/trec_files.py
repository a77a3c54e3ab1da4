"""Judgments and runs as files: TREC's columns or JSON lines in, TREC out."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmtune.contracts import Embeddings
from mmtune.errors import DataError
from mmtune.relevance.items import unite
from mmtune.relevance.relevant import Judgments, Qrels, relevant
from mmtune.runtime.files import atomic_open
from mmtune.search.exact import topk

KEYS = {
    "query": ("query", "query_id", "qid", "query-id"),
    "item": ("item", "item_id", "doc_id", "docid", "doc", "candidate", "candidate_id", "negative_id", "corpus-id"),
    "grade": ("grade", "relevance", "rel", "score", "verdict"),
    "judge": ("judge", "rater", "annotator", "user"),
}
VERDICTS = {"positive": 1, "negative": 0, True: 1, False: 0}


def read_qrels(path: str | Path) -> Judgments:
    """Judgments of a file: TREC lines `query iteration item grade`, or JSON lines {"query":, "item":, "grade":}.

    Ids are row ids. Grades are whole numbers, 0 or less is "not relevant"; in JSON a "verdict", "positive" or "negative",
    does as well, and "direction" limits a line to one. Of verdicts, and of lines with the same "judge", the last about a pair
    counts; of several judges the (lower) median. Raises DataError naming the line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; judgments are TREC or JSON lines") from None
    by_judge: dict[tuple[str | None, str, str], dict[str, int]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        in_json = line.lstrip().startswith("{")
        query, item, grade, judge, name = _json_line(line, where) if in_json else _trec_line(line, where)
        grades = by_judge.setdefault((name, query, item), {})
        value = _grade(grade, where)
        if grades.get(judge, value) != value and not judge:
            raise DataError(f"{where}: {query!r} and {item!r} are judged {grades[judge]} above and {value} here; keep one")
        grades[judge] = value
    if not by_judge:
        raise DataError(f"{path}: no judgments in it")
    out = Judgments()
    for (name, query, item), grades in by_judge.items():
        target = out if name is None else out.directed.setdefault(name, {})
        target.setdefault(query, {})[item] = sorted(grades.values())[(len(grades) - 1) // 2]
    return out


def judgments(qrels: "Qrels | str | Path | None", ids: Iterable[str]) -> Qrels | None:
    """Judgments or their file, for rows `ids`. DataError when they are all about other rows."""
    if qrels is None:
        return None
    found = read_qrels(qrels) if isinstance(qrels, str | Path) else qrels
    known = set(ids)
    parts = [found, *(found.directed.values() if isinstance(found, Judgments) else ())]
    if not any(q in known and not known.isdisjoint(items) for part in parts for q, items in part.items()):
        query = next((q for part in parts for q in part), "")
        raise DataError(f"no judgment is about two rows of these data (the first asks for {query!r}); ids are row ids")
    return found


def _grade(grade: Any, where: str) -> int:
    if isinstance(grade, str | bool) and grade in VERDICTS:
        return VERDICTS[grade]
    try:
        value = float(grade)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the grade {grade!r} is no number") from None
    if not math.isfinite(value) or value != int(value):
        raise DataError(f"{where}: the grade {grade!r} is not a whole number; nDCG's gains are whole (0, 1, 2, ...)")
    return int(value)


def _trec_line(line: str, where: str) -> tuple[str, str, Any, str, str | None]:
    parts = line.split()
    if len(parts) != 4:
        raise DataError(f"{where}: {len(parts)} columns; TREC judgments have 4: query iteration item grade")
    return parts[0], parts[2], parts[3], "", None


def _json_line(line: str, where: str) -> tuple[str, str, Any, str, str | None]:
    """(query, item, grade, judge or "", direction or None)."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as e:
        raise DataError(f"{where}: not valid JSON ({e})") from None
    found = {k: next((row[n] for n in names if row.get(n) is not None), None) for k, names in KEYS.items()}
    if found["query"] is None or found["item"] is None:
        raise DataError(f'{where}: a judgment needs "query" and "item"; this line has {", ".join(row) or "nothing"}')
    grade = 1 if found["grade"] is None else found["grade"]
    return (
        str(found["query"]),
        str(found["item"]),
        grade,
        str(found["judge"] or "verdict" * ("verdict" in row)),
        row.get("direction"),
    )


def _plain(name: str) -> str:
    if not name or any(c.isspace() for c in name):
        raise DataError(f"the row id {name!r} holds white space, which TREC files cannot; rename it or use JSON results")
    return name


def _lines(path: str | Path, lines: Iterable[str]) -> None:
    with atomic_open(path) as f:
        for line in lines:
            f.write(line.encode())


def write_qrels(path: str | Path, vectors: Mapping[str, Embeddings], pair: tuple[str, str], qrels: Qrels | None = None) -> None:
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
    path: str | Path, vectors: Mapping[str, Embeddings], pair: tuple[str, str], k: int = 100, tag: str = "mmtune"
) -> None:
    """The best `k` candidates of every query of one direction as a TREC run; scores in full, so that ties stay ties."""
    queries, candidates = _sides(vectors, pair)
    within, among = queries is candidates, np.asarray(candidates.vectors)

    def lines() -> Iterator[str]:
        for start in range(0, len(queries), 1024):
            scores, index = topk(queries.query_vectors[start : start + 1024], among, k + within)
            for i, (s_k, j_k) in enumerate(zip(scores, index, strict=True), start):
                best = [(s, j) for s, j in zip(s_k.tolist(), j_k.tolist(), strict=True) if not (within and j == i)][:k]
                for rank, (s, j) in enumerate(best, 1):
                    yield f"{_plain(queries.ids[i])} Q0 {_plain(candidates.ids[j])} {rank} {s:.9g} {tag}\n"

    _lines(path, lines())


def _sides(vectors: Mapping[str, Embeddings], pair: tuple[str, str]) -> Any:
    first = unite(pair[0], vectors[pair[0]])
    return first, first if pair[0] == pair[1] else unite(pair[1], vectors[pair[1]])
