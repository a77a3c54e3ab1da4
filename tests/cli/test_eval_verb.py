"""What `mmtune eval` says beside its figures."""

import json

import mmtune
from mmtune.cli import main


def test_pieces_of_one_recording_are_named_where_they_answer_each_other(tmp_path, capsys):
    lines = [f"piece {n} of {n // 4},m{n // 8},r{n // 4}" for n in range(16)]
    (tmp_path / "a.csv").write_text("\n".join(["text,group,recording", *lines]) + "\n")
    (tmp_path / "b.csv").write_text("\n".join(["text,group", *(line.rpartition(",")[0] for line in lines)]) + "\n")
    for name in "ab":
        mmtune.pack(tmp_path / f"{name}.csv", tmp_path / name)

    def said(data, *options):
        assert main(["eval", "tiny:clip", str(tmp_path / data), "--quiet", *options]) == 0
        return capsys.readouterr().out

    note = json.loads(said("a", "--json"))["note"]
    assert note in said("a")
    assert note.startswith("note: text->text: rows of one recording (4 in 16 rows) are right answers for each other")
    assert "note" not in json.loads(said("b", "--json")) and "note:" not in said("b")
    assert "note:" not in said("a", "--exclude-same", "recording")
    figures = [json.loads(said("a", "--json", *more)) for more in ((), ("--exclude-same", "recording"))]
    usual, without = (f["directions"]["text->text"]["metrics"]["map"] for f in figures)
    assert without < usual
