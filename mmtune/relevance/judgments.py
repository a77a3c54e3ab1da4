"""Read human judgments of pairs of rows from files in TREC format (`query iteration item grade`) or JSON Lines.

Both formats serve two purposes: evaluation reads the file as graded relevance (`read_qrels`), and mining reads it as positive
or negative verdicts on pairs (`read_verdicts`). A JSON line has:
    "query" and "item": row ids; QUERY_KEYS and ITEM_KEYS list the other accepted names of these fields
    "grade" (a whole number) or "verdict" ("positive" or "negative")
    "judge": optional, who made the judgment
    "direction": optional, e.g. "image->text"; the judgment then holds in this direction only
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmtune.contracts import JsonObject
from mmtune.data.identity_labels import identity_string
from mmtune.errors import DataError
from mmtune.relevance.items import Items
from mmtune.relevance.ragged import Ragged
from mmtune.runtime.files import CANCELLED

QUERY_KEYS = ("query", "query_id", "qid", "query-id")
ITEM_KEYS = ("item", "item_id", "doc_id", "docid", "doc", "candidate", "candidate_id", "negative_id", "corpus-id")
GRADE_KEYS = ("grade", "relevance", "rel", "score", "verdict")
JUDGE_KEYS = ("judge", "rater", "annotator", "user")
VERDICT_GRADES: Mapping[object, int] = {"positive": 1, "negative": 0, True: 1, False: 0}
"""*_KEYS: accepted names of a JSON field, in order of preference. VERDICT_GRADES: the grade of each verdict."""

Qrels = Mapping[str, Mapping[str, int]]
"""Graded judgments: {query row id: {candidate row id: grade}}; a grade of 0 or less means "not relevant"."""


class Judgments(dict[str, dict[str, int]]):
    """The qrels read from a file.

    directed: {direction: qrels that hold in that direction only}, e.g. a verdict that concerns only the caption of an image
    """

    def __init__(self) -> None:
        super().__init__()
        self.directed: dict[str, dict[str, dict[str, int]]] = {}


def grades_of(qrels: Qrels, query: str, name: str) -> Mapping[str, int]:
    """Return {candidate: grade} of one query row in direction `name`.

    Judgments of that direction override judgments without a direction.
    """
    general = qrels.get(query, {})
    if not isinstance(qrels, Judgments):
        return general
    return {**general, **qrels.directed.get(name, {}).get(query, {})}


@dataclass(frozen=True)
class JudgmentLine:
    """One judgment line of a file.

    where: file and line number, for messages
    query, item: the two row ids
    fields: all fields of the line, under the names used in the file
    """

    where: str
    query: str
    item: str
    fields: JsonObject

    def first(self, keys: Iterable[str]) -> object:
        """Return the value of the first of `keys` that the line has and that is not null, or None."""
        return next((self.fields[k] for k in keys if self.fields.get(k) is not None), None)


def read_lines(path: str | Path, log: bool = False) -> Iterator[JudgmentLine]:
    """Yield the judgments of a file.

    log: True if the file is a log that may still be appended to. Lines that were only partly written (see `append_jsonl`) are
        then skipped.

    Raises DataError with file and line number if a line is not a judgment.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: this file with judgments does not exist") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; judgments are a text file in TREC format or JSON Lines") from None
    lines = text.split("\n")  # only a newline ends a line: `splitlines` would also split at U+2028 inside a value
    for number, line in enumerate(lines, 1):
        # a partly written line was marked as cancelled by a later writer, or is the last line and its JSON object is not closed
        torn = log and (line.endswith(CANCELLED.decode()) or (number == len(lines) and not line.rstrip().endswith("}")))
        if line.strip() and not torn:
            where = f"{path} line {number}"
            yield _json_line(line, where) if line.lstrip().startswith("{") else _trec_line(line, where)


def _trec_line(line: str, where: str) -> JudgmentLine:
    parts = line.split()
    if len(parts) != 4:
        raise DataError(f"{where}: {len(parts)} columns; TREC judgments have 4: query iteration item grade")
    return JudgmentLine(where, identity_string(parts[0]) or "", identity_string(parts[2]) or "", {"grade": parts[3]})


def _json_line(line: str, where: str) -> JudgmentLine:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise DataError(f"{where}: not valid JSON ({e})") from None
    query = next((row[k] for k in QUERY_KEYS if row.get(k) is not None), None)
    item = next((row[k] for k in ITEM_KEYS if row.get(k) is not None), None)
    if query is None or item is None:
        raise DataError(f'{where}: a judgment needs "query" and "item"; this line has {", ".join(row) or "nothing"}')
    return JudgmentLine(where, identity_string(query) or "", identity_string(item) or "", row)


# --- graded judgments, for evaluation --------------------------------------------------------------------------------


def read_qrels(path: str | Path) -> Judgments:
    """Read a file as graded judgments.

    Grades are whole numbers; 0 or less means "not relevant". A verdict counts as grade 1 or 0, and a line with neither grade
    nor verdict as 1. If one judge judges a pair several times, the last line counts. The same holds for verdicts without a
    judge. If several judges judge a pair, its grade is their median (the lower one of two).

    Raises DataError with the line number if a grade is not a whole number, or if two grades without a judge contradict each
    other.
    """
    by_judge: dict[tuple[str | None, str, str], dict[str, int]] = {}
    for line in read_lines(path):
        judge = str(line.first(JUDGE_KEYS) or ("verdict" if "verdict" in line.fields else ""))
        grade = line.first(GRADE_KEYS)
        value = _grade(1 if grade is None else grade, line.where)
        name = line.fields.get("direction")
        grades = by_judge.setdefault((name, line.query, line.item), {})
        if grades.get(judge, value) != value and not judge:
            pair = f"{line.query!r} and {line.item!r}"
            raise DataError(
                f"{line.where}: the pair {pair} has grade {grades[judge]} on an earlier line and {value} here; keep one"
            )
        grades[judge] = value
    if not by_judge:
        raise DataError(f"{path}: the file has no judgments")
    out = Judgments()
    for (name, query, item), grades in by_judge.items():
        target = out if name is None else out.directed.setdefault(name, {})
        target.setdefault(query, {})[item] = sorted(grades.values())[(len(grades) - 1) // 2]
    return out


def _grade(grade: object, where: str) -> int:
    if isinstance(grade, str | bool) and grade in VERDICT_GRADES:
        return VERDICT_GRADES[grade]
    try:
        value = float(grade)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"{where}: the grade {grade!r} is not a number") from None
    if not math.isfinite(value) or value != int(value):
        raise DataError(f"{where}: the grade {grade!r} is not a whole number; nDCG's gains are whole (0, 1, 2, ...)")
    return int(value)


def qrels_for(qrels: "Qrels | str | Path | None", ids: Iterable[str]) -> Qrels | None:
    """Return the judgments as `Qrels`, read from a file if `qrels` is a path; None stays None.

    ids: the row ids of the data that will be evaluated

    Raises DataError if no judgment is about two of these rows.
    """
    if qrels is None:
        return None
    judged = read_qrels(qrels) if isinstance(qrels, str | Path) else qrels
    known = set(ids)
    parts = [judged, *(judged.directed.values() if isinstance(judged, Judgments) else ())]
    if not any(q in known and not known.isdisjoint(items) for part in parts for q, items in part.items()):
        query = next((q for part in parts for q in part), "")
        raise DataError(
            f"no judgment is about two rows of these data (the first has query {query!r}); query and item must be row ids"
        )
    return judged


# --- verdicts on pairs, for mining -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A verdict on a pair of rows. If `direction` is set, the verdict holds in that direction only."""

    query: str
    item: str
    positive: bool
    direction: str | None = None


def read_verdicts(path: str | Path) -> list[Verdict]:
    """Read the verdicts of a file, in file order. A line with a "grade" and no "verdict" is positive if the grade is above 0.

    Raises DataError with file and line number if a line has neither.
    """
    verdicts = []
    for line in read_lines(path, log=True):
        verdict, grade = line.fields.get("verdict"), line.fields.get("grade")
        if verdict is None and isinstance(grade, int | float):
            verdict = "positive" if grade > 0 else "negative"
        if verdict not in ("positive", "negative"):
            raise DataError(f'{line.where}: needs a "query", an "item", and a "verdict" that is "positive" or "negative"')
        verdicts.append(Verdict(line.query, line.item, verdict == "positive", line.fields.get("direction")))
    return verdicts


@dataclass
class JudgedPairs:
    """The verdicts of one direction, by item number.

    positive: int64 [J, 2], pairs (query item, candidate item)
    negative: the negative candidates of each query item
    unused: number of verdicts about rows that are not in the data
    """

    positive: np.ndarray
    negative: Ragged
    unused: int


def judged_pairs(verdicts: Iterable[Verdict], name: str, queries: Items, candidates: Items) -> JudgedPairs:
    """Collect the verdicts that hold in direction `name`. If a pair has several verdicts, the last one counts.

    A verdict without a direction holds in both directions of the pair.
    """
    query_item = dict(zip(queries.row_ids, queries.of_row.tolist(), strict=True))
    within = queries is candidates
    candidate_item = query_item if within else dict(zip(candidates.row_ids, candidates.of_row.tolist(), strict=True))
    last: dict[tuple[int, int], bool] = {}
    unused = 0
    for verdict in verdicts:
        if verdict.direction not in (None, name):
            continue
        both_ways = ((verdict.query, verdict.item), (verdict.item, verdict.query))
        pairs = [(query_item.get(q), candidate_item.get(c)) for q, c in both_ways]
        pairs = pairs if verdict.direction is None or within else pairs[:1]
        known = [(q, c) for q, c in pairs if q is not None and c is not None]
        unused += not known
        for pair in known:
            last.pop(pair, None)
            last[pair] = verdict.positive
    positive = np.array([p for p, v in last.items() if v], np.int64).reshape(-1, 2)
    negative = np.array([p for p, v in last.items() if not v], np.int64).reshape(-1, 2)
    return JudgedPairs(positive, Ragged.of(negative[:, 0], negative[:, 1], len(queries)), unused)
