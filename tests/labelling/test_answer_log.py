"""Answers: the last one counts, several annotators, judgments, and what a killed writer leaves."""

import json

import pytest

from mmtune.labelling.answer_log import MATCH, NOT, RETRACTED, UNSURE, AnswerLog, Question
from mmtune.relevance.judgments import read_qrels, read_verdicts

A, B, C = (Question("q", item, "image->image", "unsure") for item in "abc")


def test_the_last_answer_counts_and_judgments_are_readable(tmp_path):
    log = AnswerLog(tmp_path / "out")
    for question, answer, who in (
        (A, NOT, "ann"),
        (A, MATCH, "ann"),
        (B, UNSURE, "ann"),
        (C, NOT, "ann"),
        (A, MATCH, "bob"),
        (C, MATCH, "bob"),
    ):
        log.add(question, answer, who)
    log.add(C, RETRACTED, "bob")
    assert log.of("ann") == {A.key: MATCH, B.key: UNSURE, C.key: NOT} and log.of("bob") == {A.key: MATCH}
    assert log.publish() == 3
    qrels = read_qrels(tmp_path / "out/judgments.jsonl")
    assert qrels.directed == {"image->image": {"q": {"a": 1, "c": 0}}}
    assert [(v.item, v.positive) for v in read_verdicts(tmp_path / "out/judgments.jsonl")] == [
        ("a", True),
        ("c", False),
        ("a", True),
    ]
    assert log.agreement().pairs == 1 and log.agreement().same == 1.0


def test_a_torn_last_line_is_not_an_answer(tmp_path):
    log = AnswerLog(tmp_path)
    log.add(A, MATCH, "ann")
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + whole[:40])
    assert AnswerLog(tmp_path).of("ann") == {A.key: MATCH}
    log.add(B, NOT, "ann")  # the line after a torn one
    assert AnswerLog(tmp_path).of("ann") == {A.key: MATCH, B.key: NOT}
    assert json.loads(whole)["annotator"] == "ann"


def test_other_words_are_no_answers(tmp_path):
    with pytest.raises(AssertionError):
        AnswerLog(tmp_path).add(A, "perhaps", "ann")
