"""`mmtune label` without a browser: sessions, resuming, several annotators, tables and collections, messages."""

import json

import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.labelling.label import open_label_session
from tests.support.label_shop import label_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return label_shop(tmp_path_factory.mktemp("label"))


def truth(question):
    return "match" if question.query.rpartition("-")[0] == question.item.rpartition("-")[0] else "not"


def answer(session, who, count):
    asked = []
    for _ in range(count):
        question = session.next(who)
        asked.append(question.key)
        session.answer(question, truth(question), who)
    return asked


def test_a_session_continues_where_it_was(shop, tmp_path):
    session = open_label_session(shop, tmp_path / "out", model="tiny:clip")
    asked = answer(session, "ann", 25)
    assert len(set(asked)) == 25
    again = open_label_session(shop, tmp_path / "out", model="tiny:clip")
    assert again.counts("ann")["match"] + again.counts("ann")["not"] == 25
    assert again.next("ann").key not in asked
    lines = [json.loads(line) for line in (tmp_path / "out/judgments.jsonl").read_text().split("\n") if line]
    assert {(x["query"], x["item"]) for x in lines} == {key[:2] for key in asked}


def test_an_answer_can_be_taken_back(shop, tmp_path):
    session = open_label_session(shop, tmp_path / "out", model="tiny:clip")
    asked = answer(session, "ann", 3)
    assert session.take_back("ann").key == asked[-1]
    assert session.next("ann").key == asked[-1] and len(session.log.lines()) == 2
    assert session.take_back("nobody") is None


def test_annotators_share_some_questions(shop, tmp_path):
    session = open_label_session(shop, tmp_path / "out", model="tiny:clip")
    first = answer(session, "ann", 20)
    second = answer(session, "bob", 20)
    shared = set(first) & set(second)
    assert 3 <= len(shared) <= 6
    assert session.log.agreement().pairs == len(shared) and session.log.agreement().same == 1.0
    assert "all agree on 100%" in session.heading("bob")


def test_what_is_shown_is_escaped(shop, tmp_path):
    session = open_label_session(shop, tmp_path / "out", model="tiny:clip")
    question = session.next("ann")
    shown = session.show(question, 7)
    assert shown.count("<img") >= 3 and 'data-number="7"' in shown and question.query in shown
    assert "<script>" not in session.heading("<script>")
    assert "nothing left" in session.show(None, 8)


def test_a_table_and_a_collection(shop, tmp_path, monkeypatch):
    from mmtune.index.collection import Collection

    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    table = shop.replace("packed", "shop/rows.csv")
    of_table = open_label_session(table, tmp_path / "a", model="tiny:clip")
    of_pack = open_label_session(shop, tmp_path / "b", model="tiny:clip")
    assert of_table.next("x") == of_pack.next("x")
    with Collection(tmp_path / "coll", create=True) as collection:
        built = collection.build("tiny:clip", shop, quiet=True)
        with pytest.raises(DataError, match="no version is live"):
            open_label_session(tmp_path / "coll", tmp_path / "c")
        collection.promote(built.version, force=True, why="test")
    of_collection = open_label_session(tmp_path / "coll", tmp_path / "d")
    assert {*of_collection.pool.queries} == {*of_pack.pool.queries}
    assert len(of_collection.pool) == len(of_pack.pool)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "x"], "--model MODEL is needed"),
        (["--model", "tiny:clip"], "--out DIR is needed"),
        (["--model", "tiny:clip", "--out", "x", "--direction", "up"], "--direction up: use one of image->image"),
        (["--model", "tiny:clip", "--out", "x", "--choose", "wisely"], "--choose wisely: use unsure"),
        (["--model", "tiny:clip", "--out", "x", "--choose", "disagreement"], "needs --tuned MODEL"),
        (["--model", "tiny:clip", "--budget", "0"], "--budget 0: must be at least 1"),
        (["--model", "tiny:clip", "--budget", "20"], "--budget: 0 groups of at least two rows"),
    ],
)
def test_one_line_says_what_is_wrong(shop, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["label", shop, *options]) == 2
    said = capsys.readouterr().err.strip().split("\n")[-1]
    assert message in said
    with pytest.raises(DataError, match="no such file"):
        open_label_session("missing.csv", tmp_path / "o", model="tiny:clip")


def test_another_direction_needs_another_directory(shop, tmp_path):
    open_label_session(shop, tmp_path / "out", model="tiny:clip")
    (tmp_path / "out/label.json").write_text('{"direction": "text->image"}')
    with pytest.raises(DataError, match="another --out"):
        open_label_session(shop, tmp_path / "out", model="tiny:clip")


def test_the_budget_of_the_command(shop, capsys):
    assert main(["label", shop, "--model", "tiny:clip", "--budget", "30", "--truth", "kind", "--seeds", "2", "--json"]) == 0
    curve = json.loads(capsys.readouterr().out)
    assert curve["answers"] == [30] and len(curve["chosen"]) == len(curve["random"]) == 2
    assert mmtune.label_budget(shop, 30, model="tiny:clip", truth="kind", seeds=2).to_dict() == curve
