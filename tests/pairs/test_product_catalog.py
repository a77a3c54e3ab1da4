"""Catalogs and feeds: several pictures a product, captions from templates, and what `mmtune pack` makes of the result."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from mmtune.pairs.product_catalog import pairs_from_catalog, sentences_of
from tests.support.pairs_helpers import dropped, picture, pictures, rows_of

FEED = """<?xml version="1.0" encoding="utf-8"?>
<rss xmlns:g="http://base.google.com/ns/1.0" version="2.0"><channel><title>Shop</title>
<item><g:id>A1</g:id><title>Boot &amp; co</title><g:description><![CDATA[<p>Warm <b>brown</b> leather.</p>]]></g:description>
<g:image_link>0.png</g:image_link><g:additional_image_link>1.png</g:additional_image_link>
<g:additional_image_link>2.png</g:additional_image_link><g:brand>Nike</g:brand>
<g:product_detail><g:attribute_name>sole</g:attribute_name><g:attribute_value>rubber</g:attribute_value></g:product_detail></item>
<item><g:id>A2</g:id><title>Bag</title><g:image_link>3.png</g:image_link></item>
</channel></rss>
"""


def write_csv(path, header, *rows):
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([header, *rows])
    return path


def catalog(source, out, *captions, **options):
    return pairs_from_catalog(
        source, out, **{"id": "sku", "media": {"image": "photo"}, "captions": captions, "quiet": True, **options}
    )


@pytest.fixture
def shop(tmp_path):
    pictures(tmp_path / "photos", 4)
    return write_csv(
        tmp_path / "shop.csv",
        ["sku", "photo", "brand", "title", "color", "price", "licence"],
        ["A", "photos/0.png", "Nike", "boot", "red", "10", "CC0"],
        ["B", "photos/1.png|photos/2.png", "", "bag", "", "7.5", "CC0"],
        ["C", "photos/missing.png", "Puma", "cap", "blue", "3", ""],
        ["", "photos/3.png", "Puma", "cap", "blue", "3", ""],
        ["D", "photos/3.png", "", "", "", "", ""],
    )


def test_captions_pictures_groups_and_metadata(tmp_path, shop):
    result = catalog(shop, tmp_path / "out", "{brand} {title}, {color}", "a photo of a {title}", separator="|")
    rows = rows_of(tmp_path / "out")
    assert [(r["id"], r["group"], r["image"], r["text"]) for r in rows] == [
        ("A", "A", "../photos/0.png", "Nike boot, red"),
        ("A#2", "A", "../photos/0.png", "a photo of a boot"),
        ("B", "B", "../photos/1.png", "bag"),
        ("B#2", "B", "../photos/2.png", "a photo of a bag"),
    ]
    assert rows[0]["price"] == 10.0 and rows[2]["price"] == 7.5 and rows[0]["licence"] == "CC0"
    assert dropped(tmp_path / "out") == {
        "no such file": 1,
        "no id: sku is empty": 1,
        "no file: photo": 1,
        "no caption": 1,
        "'{brand} {title}, {color}' has no attribute for it": 1,
        "'a photo of a {title}' has no attribute for it": 1,
    }
    assert result.measures == {"products": 2, "files": 3, "captions": 4, "rows joined by id": 0} and result.rows == 5
    packed = mmtune.pack(tmp_path / "out/pairs.parquet", tmp_path / "packed")
    data = mmtune.open_data(tmp_path / "packed")
    assert packed.packed == 4 and data.groups == ["A", "A", "B", "B"] and data.column("price") == [10.0, 10.0, 7.5, 7.5]


def test_every_combination_and_sentences(tmp_path, shop):
    catalog(shop, tmp_path / "out", "{title}", "{title} of {brand}", separator="|", combine="all")
    assert [r["id"] for r in rows_of(tmp_path / "out")] == ["A", "A#2", "B", "B#2"]  # "bag" is one caption: there is no brand
    assert sentences_of("A red boot. It is warm! Size 3.5 cm. Short one. \u201cQuoted it is too\u201d.") == [
        "A red boot",
        "It is warm!",
        "Size 3.5 cm",
        "\u201cQuoted it is too\u201d",
    ]


def test_rows_of_one_id_are_joined_and_no_new_id_collides(tmp_path):
    names = pictures(tmp_path, 4)
    source = write_csv(
        tmp_path / "s.csv",
        ["sku", "photo", "title"],
        ["A", names[0], "boot"],
        ["A#2", names[3], "cap"],
        ["A", names[1], "boot"],
        ["A", names[0], "red boot"],
    )
    result = catalog(source, tmp_path / "out", "{title}")
    rows = rows_of(tmp_path / "out")
    assert [(r["id"], r["group"], r["image"], r["text"]) for r in rows] == [
        ("A#2", "A#2", "../3.png", "cap"),
        ("A", "A", "../0.png", "boot"),
        ("A#2#", "A", "../1.png", "red boot"),
    ]
    assert result.measures["rows joined by id"] == 2 and not dropped(tmp_path / "out")


def test_pictures_of_a_joined_table_and_of_cells_with_bytes(tmp_path, shop):
    photos = tmp_path / "more/photos.parquet"
    photos.parent.mkdir()
    cells = [{"bytes": picture(9), "path": "x.png"}, {"bytes": picture(8), "path": None}]
    pq.write_table(pa.table({"sku": ["A", "Z"], "photo": cells}), photos)
    result = catalog(shop, tmp_path / "out", "{title}", join=[photos], separator="|")
    stored = [r["image"] for r in rows_of(tmp_path / "out") if r["group"] == "A"]
    assert stored[0] == "../photos/0.png" and (tmp_path / "out" / stored[1]).read_bytes() == picture(9)
    assert dropped(tmp_path / "out")["of a product that is not in the catalog"] == 1 and result.rows == 7


def test_a_merchant_feed(tmp_path):
    pictures(tmp_path, 4)
    (tmp_path / "feed.xml").write_text(FEED)
    catalog(
        tmp_path / "feed.xml",
        tmp_path / "out",
        "{brand} {title} with {sole} sole",
        id="id",
        media={"image": ["image_link", "additional_image_link"]},
        sentences=["description"],
    )
    rows = rows_of(tmp_path / "out")
    assert [(r["id"], r["image"], r["text"]) for r in rows] == [
        ("A1", "../0.png", "Nike Boot & co with rubber sole"),
        ("A1#2", "../1.png", "Warm brown leather"),
        ("A1#3", "../2.png", "Nike Boot & co with rubber sole"),
        ("A2", "../3.png", "Bag with sole"),
    ]


def test_an_entity_bomb_is_refused_and_a_cut_feed_keeps_what_was_whole(tmp_path):
    pictures(tmp_path, 4)
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
    (tmp_path / "bomb.xml").write_text(FEED.replace("<rss", bomb + "<rss", 1).replace("Bag", "&b;"))
    options = {"id": "id", "media": {"image": "image_link"}}
    with pytest.raises(DataError, match=r"bomb.xml: refused, because it declares entities"):
        catalog(tmp_path / "bomb.xml", tmp_path / "out", "{title}", **options)
    (tmp_path / "cut.xml").write_text(FEED[: FEED.index("<g:id>A2")])
    catalog(tmp_path / "cut.xml", tmp_path / "out", "{title}", **options)
    assert [r["id"] for r in rows_of(tmp_path / "out")] == ["A1"]
    assert list(dropped(tmp_path / "out")) == ["not well-formed XML from here on"]
    (tmp_path / "page.xml").write_text("<html><body>404</body></html>")
    with pytest.raises(DataError, match=r"page.xml: no <item> or <entry> in it; is it a product feed\?"):
        catalog(tmp_path / "page.xml", tmp_path / "out2", "{title}", **options)


def test_broken_twins_of_a_catalog(tmp_path, shop, capsys):
    command = ["pairs", "catalog", str(shop), "--id", "sku", "--image", "photo", "--out", str(tmp_path / "o"), "--quiet"]
    for wrong, message in (
        (["--caption", "{titel}"], "no column 'titel' (--caption '{titel}'); did you mean {title}?"),
        (["--caption", "{title}", "--image", "foto"], "no column 'foto' (--image); did you mean 'photo'?"),
        ([], "no caption; give --caption"),
        (["--caption", "{licence}", "--separator", ";", "--group", "grup"], "no column 'grup' (--group)"),
    ):
        assert main([*command, *wrong]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "o").exists()
    data = shop.read_bytes()
    # the last line cut in the middle, and a name in Windows-1252
    (tmp_path / "cut.csv").write_bytes(data.replace(b"Nike", "Caf\u00e9".encode("cp1252"))[:-7] + b"\nE,photos/0.png,x\n")
    catalog(tmp_path / "cut.csv", tmp_path / "out", "{brand} {title}")
    assert rows_of(tmp_path / "out")[0]["text"] == "Caf\u00e9 boot"
    assert dropped(tmp_path / "out")["wrong number of cells"] >= 1
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(DataError, match=r"cut.parquet: not a readable Parquet file"):
        catalog(tmp_path / "cut.parquet", tmp_path / "out3", "{title}")


def test_nothing_left_is_an_error_with_the_reasons(tmp_path):
    source = write_csv(tmp_path / "s.csv", ["sku", "photo", "title"], ["A", "gone.png", "boot"])
    with pytest.raises(DataError, match=r"no product has both a file and a caption \(1 files: no such file"):
        catalog(source, tmp_path / "out", "{title}")
    assert not (tmp_path / "out").exists()


def test_the_command_line_prints_counts_and_json(tmp_path, shop, capsys):
    command = ["pairs", "catalog", str(shop), "--caption", "{title}", "--id", "sku", "--image", "photo", "--out"]
    assert main([*command, str(tmp_path / "o")]) == 0
    assert "1 pairs of 5 rows" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "o"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measures"]["products"] == 1
