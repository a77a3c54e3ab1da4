"""The answers of annotators: an append-only log that survives a kill, and the judgments made of it."""

from dataclasses import dataclass
from pathlib import Path

from mmtune.contracts import JsonObject
from mmtune.index.collection_layout import now
from mmtune.pairs.agreement import Agreement, agreement
from mmtune.runtime.files import append_jsonl, read_jsonl_log, write_jsonl

MATCH, NOT, UNSURE = "match", "not", "unsure"
ANSWERS = {MATCH: 1, NOT: 0, UNSURE: None}
"""Answer -> grade; None for one that makes no judgment."""
RETRACTED = "retracted"


@dataclass(frozen=True)
class Question:
    """One question: does `item` match `query`? Both are row ids.

    direction: "a->b", the modalities that are shown
    reason: why it is asked
    """

    query: str
    item: str
    direction: str
    reason: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the question."""
        return self.query, self.item, self.direction


class AnswerLog:
    """The answers in OUT/answers.jsonl. Each is appended by one write, so that a kill loses none and several pages may run.

    An annotator's last answer to a question counts; one that was taken back counts as not given.
    """

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.path = self.out / "answers.jsonl"

    def add(self, question: Question, answer: str, annotator: str) -> None:
        """Append an answer: match, not, unsure, or retracted."""
        assert answer in ANSWERS or answer == RETRACTED
        line = {"query": question.query, "item": question.item, "direction": question.direction, "answer": answer}
        append_jsonl(self.path, {"at": now(), **line, "annotator": annotator, "reason": question.reason})

    def lines(self) -> list[JsonObject]:
        """All answers that count, in the order in which they were given."""
        last: dict[tuple[str, str, str, str], JsonObject] = {}
        for line in read_jsonl_log(self.path):
            key = line["query"], line["item"], line["direction"], line["annotator"]
            last.pop(key, None)  # so that an answer that was given anew moves to the end
            if line["answer"] != RETRACTED:
                last[key] = line
        return list(last.values())

    def of(self, annotator: str) -> dict[tuple[str, str, str], str]:
        """{question's key: answer} of one annotator."""
        return {
            (line["query"], line["item"], line["direction"]): line["answer"]
            for line in self.lines()
            if line["annotator"] == annotator
        }

    def agreement(self) -> Agreement:
        """How far the annotators agree on the pairs that several of them judged."""
        grades: dict[object, dict[str, int]] = {}
        for line in self.lines():
            grade = ANSWERS[line["answer"]]
            if grade is not None:
                grades.setdefault((line["query"], line["item"], line["direction"]), {})[line["annotator"]] = grade
        return agreement(grades)

    def publish(self) -> int:
        """Write OUT/judgments.jsonl, which `eval --qrels` and `mine --judgments` read; returns the number of judgments."""
        judgments = [
            {
                "query": line["query"],
                "item": line["item"],
                "direction": line["direction"],
                "grade": grade,
                "verdict": "positive" if grade else "negative",
                "judge": line["annotator"],
            }
            for line in self.lines()
            if (grade := ANSWERS[line["answer"]]) is not None
        ]
        write_jsonl(self.out / "judgments.jsonl", judgments)
        return len(judgments)
