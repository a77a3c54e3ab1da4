"""Read human judgments of others: tables, and JSON exports of Label Studio."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmtune.data.identity_labels import identity_string
from mmtune.data.sources.row_source import InvalidRow, open_source
from mmtune.errors import DataError
from mmtune.pairs.drop_counts import DropCounts
from mmtune.relevance.judgments import GRADE_KEYS, ITEM_KEYS, JUDGE_KEYS, QUERY_KEYS
from mmtune.runtime.files import read_json

WORDS = {
    **dict.fromkeys(("match", "positive", "relevant", "yes", "true", "correct", "same"), 1),
    **dict.fromkeys(
        ("no match", "not", "not a match", "not_a_match", "negative", "irrelevant", "not relevant", "no", "false"), 0
    ),
}
"""Usual answers -> grade."""
UNSURE = {"unsure", "skip", "skipped", "don't know", "dont know", "maybe", "unclear", ""}
LABEL_KEYS = (*GRADE_KEYS, "label", "choice", "answer")
ANNOTATOR_KEYS = (*JUDGE_KEYS, "completed_by")


@dataclass(frozen=True)
class Judged:
    """One judgment: the query, the item, what was answered, who answered (or ""), and where it stands."""

    query: str
    item: str
    answer: str
    judge: str
    where: str


@dataclass(frozen=True)
class JudgedColumns:
    """Names of the columns (or fields of a task's data); None means a usual name."""

    query: str | None = None
    item: str | None = None
    grade: str | None = None
    judge: str | None = None


def read_judged(source: str | Path, columns: JudgedColumns, drops: DropCounts) -> Iterator[Judged]:
    """Yield the judgments of a CSV, TSV, JSONL or Parquet table, or of Label Studio's JSON or JSON-MIN export."""
    if Path(source).suffix.lower() == ".json":
        yield from _label_studio(source, columns, drops)
        return
    opened = open_source(source)
    _check_columns(source, list(opened.columns), columns)
    for number, cells in opened.rows(set(opened.columns)):
        if isinstance(cells, InvalidRow):
            drops.add(cells.reason.split(": ")[-1], f"row {number}")
        else:
            yield from _flat(cells, f"row {number}", columns, drops)


def _check_columns(source: str | Path, given: list[str], columns: JudgedColumns) -> None:
    for role, name, usual in (
        ("query", columns.query, QUERY_KEYS),
        ("item", columns.item, ITEM_KEYS),
        ("grade", columns.grade, LABEL_KEYS),
    ):
        if name is not None and name not in given:
            raise DataError(f"{source}: no column {name!r} (--{role}); it has {', '.join(given[:20])}")
        if name is None and not set(usual) & set(given):
            raise DataError(
                f"{source}: no column is called {usual[0]}; name it by --{role} COL (it has {', '.join(given[:20])})"
            )


def _value(cells: Mapping[str, object], name: str | None, usual: tuple[str, ...]) -> object:
    return next((cells[k] for k in ((name,) if name else usual) if k in cells and cells[k] is not None), None)


def _flat(cells: Mapping[str, object], where: str, columns: JudgedColumns, drops: DropCounts) -> Iterator[Judged]:
    query = identity_string(_value(cells, columns.query, QUERY_KEYS))
    item = identity_string(_value(cells, columns.item, ITEM_KEYS))
    answer = _value(cells, columns.grade, LABEL_KEYS)
    if not query or not item:
        drops.add("no query" if not query else "no item", where)
    elif answer is None:
        drops.add("no answer", where)
    else:
        judge = _value(cells, columns.judge, ANNOTATOR_KEYS)
        yield Judged(query, item, str(answer), identity_string(judge) or "", where)


def _label_studio(source: str | Path, columns: JudgedColumns, drops: DropCounts) -> Iterator[Judged]:
    tasks = read_json(source)
    if not isinstance(tasks, list) or not all(isinstance(t, dict) for t in tasks):
        raise DataError(
            f"{source}: not an export of Label Studio (a JSON list of tasks); other judgments are CSV or JSONL files"
        )
    if not any("annotations" in t or "completions" in t for t in tasks):  # JSON-MIN has the answers beside the data
        given = list(dict.fromkeys(k for t in tasks for k in t))
        _check_columns(source, given, columns)
        for n, task in enumerate(tasks, 1):
            yield from _flat(task, f"task {task.get('id', n)}", columns, drops)
        return
    data_keys = list(dict.fromkeys(k for t in tasks if isinstance(t.get("data"), dict) for k in t["data"]))
    _check_columns(source, [*data_keys, *LABEL_KEYS], JudgedColumns(columns.query, columns.item))
    for n, task in enumerate(tasks, 1):
        where, data = f"task {task.get('id', n)}", task.get("data")
        annotations = task.get("annotations") or task.get("completions") or []
        if not isinstance(data, dict) or not annotations:
            drops.add("a task without answers", where)
            continue
        for annotation in annotations:
            if annotation.get("was_cancelled"):
                drops.add("skipped by the annotator", where)
                continue
            answer = _answer(annotation.get("result") or [], columns.grade)
            by = annotation.get("completed_by")
            judge = (by.get("email") or by.get("id")) if isinstance(by, dict) else by
            cells = {**data, "label": answer, "judge": judge}
            yield from _flat(cells, where, JudgedColumns(columns.query, columns.item, "label", "judge"), drops)


def _answer(results: list[dict[str, object]], name: str | None) -> object:
    """The answer of one annotation: its first choice, rating or number; of the control `name` if that is given."""
    for result in results:
        value = result.get("value")
        if isinstance(value, dict) and name in (None, result.get("from_name")):
            for kind in ("choices", "rating", "number", "taxonomy"):
                found = value.get(kind)
                if found not in (None, []):
                    return found[0] if isinstance(found, list) else found
    return None


def parse_grades(text: str | None) -> dict[str, int]:
    """Parse `--grades exact=3,part=1,other=0`. Raises DataError for anything else."""
    grades = {}
    for part in filter(None, (text or "").split(",")):
        word, _, grade = part.rpartition("=")
        if not word.strip() or not grade.strip().isdecimal():
            raise DataError(f"--grades {text}: write ANSWER=GRADE,ANSWER=GRADE with whole grades from 0")
        grades[word.strip().lower()] = int(grade)
    return grades


def grade_of(answer: str, grades: Mapping[str, int]) -> int | None | str:
    """The grade of an answer; None if the annotator was unsure; a reason (str) if it is no grade."""
    word = answer.strip().lower()
    if word in grades:
        return grades[word]
    if word in UNSURE:
        return None
    if word in WORDS:
        return WORDS[word]
    try:
        number = float(word)
    except ValueError:
        return "an answer that is no grade; name it in --grades"
    return int(number) if number == int(number) and number >= 0 else "a grade that is no whole number from 0"
