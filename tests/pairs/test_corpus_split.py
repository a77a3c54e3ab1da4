"""Mixing and splits: nothing is torn apart, rows keep their split while the corpus grows, strata, time, and the data card."""

import json

import numpy as np
import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.pairs.corpus_split import split_pairs
from mmtune.pairs.hash_split import hash_fraction, hash_split, parse_shares
from mmtune.pairs.row_splits import SplitRow, parse_time, split_by_hash, units_of
from tests.support.pairs_helpers import dropped, picture, rows_of


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def things(count, first=0, **columns):
    return [
        {"id": f"r{n}", "text": f"thing {n}", "group": f"g{n // 2}", "kind": "ab"[n // 2 % 5 == 0], **columns}
        for n in range(first, first + count)
    ]


def splits_of(directory):
    return {row["id"]: row["split"] for row in rows_of(directory)}


def test_a_row_keeps_its_split_while_the_corpus_grows(tmp_path):
    split_pairs([table(tmp_path / "a.jsonl", things(200))], tmp_path / "one", quiet=True)
    grown = things(300)[::-1]  # other rows, another order
    split_pairs([table(tmp_path / "b.jsonl", grown)], tmp_path / "two", quiet=True)
    one, two = splits_of(tmp_path / "one"), splits_of(tmp_path / "two")
    assert all(two[id] == split for id, split in one.items())
    assert all(two[f"r{n}"] == two[f"r{n + 1}"] for n in range(0, 300, 2))  # a group is in one split
    shares = {s: sum(x == s for x in two.values()) / 300 for s in ("train", "val", "test")}
    assert abs(shares["train"] - 0.8) < 0.1 and min(shares.values()) > 0.03
    assert two["r0"] == hash_split("group=g0", {"train": 0.8, "val": 0.1, "test": 0.1})


def test_pack_makes_a_directory_for_each_split(tmp_path):
    result = split_pairs(
        [table(tmp_path / "a.jsonl", things(60))], tmp_path / "out", splits=["train=0.5", "val=0.5"], quiet=True
    )
    packed = mmtune.pack(tmp_path / "out/pairs.parquet", tmp_path / "packed", split="split")
    assert {name: s.packed for name, s in packed.splits.items()} == result.measures["splits"]
    assert set(mmtune.open_data(tmp_path / "packed/train").column("source")) == {"a"}


def test_rows_that_share_a_recording_or_a_machine_stay_together():
    rows = [
        SplitRow("1", (("group", "x"), ("machine", "M1"))),
        SplitRow("2", (("group", "y"), ("machine", "M1"))),
        SplitRow("3", (("group", "y"), ("machine", "M2"))),
        SplitRow("4", (("group", "x2"), ("machine", "M3"))),
        SplitRow("5", ()),
    ]
    units, names = units_of(rows)
    assert units.tolist() == [0, 0, 0, 1, 2] and names == ["group=x", "group=x2", "id=5"]
    backwards, other_names = units_of(rows[::-1])
    assert sorted(other_names) == sorted(names) and backwards.tolist() == [0, 1, 2, 2, 2]
    assert split_by_hash(names, {"a": 0.5, "b": 0.5}, 0) == [hash_split(n, {"a": 0.5, "b": 0.5}) for n in names]


def test_strata_get_their_shares_and_keep_them(tmp_path):
    source = table(tmp_path / "a.jsonl", things(200))
    options = {"splits": ["train=0.8", "val=0.2"], "stratify": "kind", "quiet": True}
    split_pairs([source], tmp_path / "one", **options)
    rows = rows_of(tmp_path / "one")
    for kind, count in (("a", 160), ("b", 40)):
        of_kind = [r["split"] for r in rows if r["kind"] == kind]
        assert len(of_kind) == count and abs(of_kind.count("val") - 0.2 * count) <= 2  # a group has two rows
    grown = table(tmp_path / "b.jsonl", things(260))
    split_pairs([grown], tmp_path / "two", keep=tmp_path / "one", **options)
    one, two = splits_of(tmp_path / "one"), splits_of(tmp_path / "two")
    assert all(two[id] == split for id, split in one.items()) and abs(list(two.values()).count("val") / 260 - 0.2) < 0.03


def test_every_stratum_has_its_shares_within_a_row_and_so_has_the_whole(tmp_path):
    rows = [{"id": f"r{n}", "text": f"t{n}", "kind": str(n % 4)} for n in range(80)]
    split_pairs([table(tmp_path / "a.jsonl", rows)], tmp_path / "o", stratify="kind", quiet=True)
    counts = {}
    for row in rows_of(tmp_path / "o"):
        counts.setdefault(row["kind"], []).append(row["split"])
    for of_kind in counts.values():
        assert all(abs(of_kind.count(s) - n) <= 1 for s, n in (("train", 16), ("val", 2), ("test", 2)))
    every = sum(counts.values(), [])
    assert all(abs(every.count(s) - n) <= 1 for s, n in (("train", 64), ("val", 8), ("test", 8)))


def test_strata_of_one_group_each_are_shared_out_by_the_whole(tmp_path):
    rows = [{"id": f"r{n}", "text": f"t{n}", "group": f"g{n // 3}", "kind": f"k{n // 3}"} for n in range(120)]
    split_pairs([table(tmp_path / "a.jsonl", rows)], tmp_path / "o", stratify="kind", quiet=True)
    splits = list(splits_of(tmp_path / "o").values())
    assert all(abs(splits.count(s) - n) <= 3 for s, n in (("train", 96), ("val", 12), ("test", 12)))


def test_time_goes_forward_and_a_group_goes_where_its_latest_row_is(tmp_path):
    rows = [{"id": f"r{n}", "text": f"t{n}", "day": f"2024-01-{n + 1:02d}"} for n in range(20)]
    rows[0]["group"] = rows[19]["group"] = "g"
    rows.append({"id": "x", "text": "x", "day": "soon"})
    result = split_pairs(
        [table(tmp_path / "a.jsonl", rows)],
        tmp_path / "o",
        splits=["train=0.5", "val=0.25", "test=0.25"],
        time="day",
        quiet=True,
    )
    splits = splits_of(tmp_path / "o")
    assert splits["r0"] == splits["r19"] == "test" and "x" not in splits
    order = [splits[f"r{n}"] for n in range(1, 20)]
    assert order == sorted(order, key=["train", "val", "test"].index) and set(order) == {"train", "val", "test"}
    assert dropped(tmp_path / "o") == {"no time: day is neither a number nor an ISO date": 1}
    assert len(result.measures["cuts"]) == 2
    split_pairs(
        [tmp_path / "a.jsonl"], tmp_path / "p", splits=["train=0.5", "val=0.5"], time="day", cuts=["2024-01-05"], quiet=True
    )
    assert [splits_of(tmp_path / "p")[f"r{n}"] for n in (3, 4)] == ["train", "val"]
    assert parse_time("2024-01-01") == parse_time(1704067200) == parse_time("1704067200000") and parse_time(True) is None


def test_sources_licences_and_the_card(tmp_path):
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(picture(n % 2))  # 0 and 2 have the same content
    first = [{"id": f"r{n}", "image": f"{n}.png", "text": "x", "license": "CC0" if n else None, "price": 1} for n in range(3)]
    table(tmp_path / "shop.jsonl", first)
    table(tmp_path / "more.jsonl", [{"id": "r0", "text": "y", "price": 2.5, "source": "web"}])
    split_pairs(
        [tmp_path / "shop.jsonl", tmp_path / "more.jsonl"],
        tmp_path / "out",
        splits=["train=0.5", "val=0.5"],
        licences={"": "unknown", "more": "CC BY 4.0"},
        seed=3,
        quiet=True,
    )
    rows = {r["id"]: r for r in rows_of(tmp_path / "out")}
    assert {id: (r["source"], r["licence"], r["price"]) for id, r in rows.items()} == {
        "r0": ("shop", "unknown", 1.0),
        "r1": ("shop", "CC0", 1.0),
        "r2": ("shop", "CC0", 1.0),
        "more/r0": ("more", "CC BY 4.0", 2.5),
    }
    assert rows["more/r0"]["source.source"] == "web" and rows["r0"]["image"] == "../0.png"
    card = json.loads((tmp_path / "out/card.json").read_bytes())
    assert card["rows"] == 4 and sum(sum(c.values()) for c in card["licences"].values()) == 4
    assert set(card["licences"]) == {"unknown", "CC0", "CC BY 4.0"} and card["contents that occur more than once"] == 1
    assert card["contents in several splits"] == (rows["r0"]["split"] != rows["r2"]["split"])
    page = (tmp_path / "out/card.md").read_text()
    assert page.startswith("# Data card") and "| CC BY 4.0 |" in page and "| shop |" in page


def test_generated_pairs_stay_with_their_item_and_the_card_tells_their_history(tmp_path):
    from mmtune.pairs.label_pairs import pairs_from_labels

    rows = [{"id": f"r{n}", "text": f"thing {n}"} for n in range(30)]
    originals = table(tmp_path / "items.jsonl", rows)
    # rows without a group, and texts that were generated for them: their group is the id of the row
    generated = [{"id": f"r{n}~generated1", "text": f"query {n}", "group": f"r{n}", "kind": "q"} for n in range(30)]
    pairs_from_labels(table(tmp_path / "g.jsonl", generated), tmp_path / "labelled", levels=["kind", "group"], quiet=True)
    split_pairs([originals, tmp_path / "labelled"], tmp_path / "out", quiet=True)
    splits = splits_of(tmp_path / "out")
    assert len(splits) == 60 and all(splits[f"r{n}"] == splits[f"r{n}~generated1"] for n in range(30))
    assert json.loads((tmp_path / "out/card.json").read_bytes())["sources"][1]["made by"] == "mmtune pairs labels"


def test_broken_twins_of_splits(tmp_path, capsys):
    source = str(table(tmp_path / "a.jsonl", things(10)))
    table(tmp_path / "split.jsonl", things(2, split="train"))
    command = ["pairs", "split", source, "--out", str(tmp_path / "o"), "--quiet"]
    for options, message in (
        (["--split", "train=0.9"], "must sum to 1"),
        (["--split", "train=x"], "as NAME=SHARE"),
        (["--by", "machin"], "no column 'machin'"),
        (["--licence", "b=CC0"], "no source of this name; there are: a"),
        (["--keep", str(tmp_path / "nowhere")], "no pairs.parquet with the columns id and split (--keep)"),
        (["--cut", "2024"], "needs --time"),
        (["--time", "day", "--cut", "tomorrow"], "--cut tomorrow: give dates"),
        ([], "has a column 'split' already"),
    ):
        more = [] if options else [str(tmp_path / "split.jsonl")]
        assert main([*command[:3], *more, *command[3:], *options]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    with open(source, "a") as f:
        f.write('{"id": "r0", "text": "again"}\n{"id": "half')
    split_pairs([source], tmp_path / "o", quiet=True)
    assert (
        dropped(tmp_path / "o") == {"the id of an earlier row": 1, "not valid JSON": 1} and len(splits_of(tmp_path / "o")) == 10
    )
    with pytest.raises(DataError, match="--keep: its rows are in .*train.*, which is not in --split"):
        split_pairs([source], tmp_path / "p", splits=["a=0.5", "b=0.5"], keep=tmp_path / "o", quiet=True)


def test_hashes_are_uniform_and_shares_are_parsed():
    values = np.array([hash_fraction(f"k{n}") for n in range(4000)])
    assert 0 <= values.min() and values.max() < 1 and np.abs(np.histogram(values, 10, (0, 1))[0] - 400).max() < 90
    assert parse_shares(["train=0.9,val=0.1"]) == parse_shares(["train=0.9", "val=0.1"]) == {"train": 0.9, "val": 0.1}


def test_columns_that_an_option_names_are_kept_beside_group_and_text(tmp_path, capsys):
    """What comes after, `pack --group sku`, `--slice sku` or `--label kind`, still finds them."""
    rows = [{"sku": f"s{n // 2}", "words": f"thing {n}", "kind": "ab"[n % 2]} for n in range(40)]
    source, out = table(tmp_path / "a.jsonl", rows), tmp_path / "o"
    assert main(["pairs", "split", str(source), "--out", str(out), "--group", "sku", "--text", "words", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "judgments" not in said and " of 20 groups" in said and "  train: " in said
    for row in rows_of(out):
        assert row["sku"] == row["group"] and row["words"] == row["text"] and row["kind"] in "ab"
    packed = mmtune.pack(out / "pairs.parquet", tmp_path / "p", group="sku", split="split")
    assert packed.rows == 40
