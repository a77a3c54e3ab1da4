"""From a click log to a trained and evaluated model: `pairs logs --catalog`, `pack`, `train`, `eval`."""

import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.cli import main
from mmtune.errors import DataError
from tests.support.click_simulator import NAMES, picture_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("shop")
    return root, picture_shop(root, photos=2, sessions=3000, shown=8)


def test_a_log_becomes_a_trained_model(tmp_path, shop):
    root, log = shop
    out = tmp_path / "pairs"
    options = [x for role, column in NAMES.items() for x in (f"--{role}", column)]
    command = ["pairs", "logs", str(root / "log.parquet"), *options, "--catalog", str(root / "items.csv"), "--out", str(out)]
    assert main([*command, "--eval-fraction", "0.3"]) == 0
    pairs = pq.read_table(out / "pairs.parquet").to_pylist()
    assert all(p["image"] == str(root / f"photos/{p['item']}.png") and p["brand"].startswith("brand") for p in pairs)
    packed = mmtune.pack(out / "pairs.parquet", tmp_path / "packed", split="split", workers=1)
    assert not packed.rejected and packed.negatives.pairs["text->image"] > 0
    assert set(packed.splits) == {"train", "eval"}
    evaluation = mmtune.pack(out / "evaluation.parquet", tmp_path / "evaluation", workers=1)
    assert evaluation.packed == 40 + len({p["query"] for p in pairs if p["split"] == "eval"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = mmtune.train(
            {
                "model": "tiny:clip",
                "data": {"train": str(tmp_path / "packed/train")},
                "objective": [{"loss": "info_nce", "weights": "weight"}],
                "train": {"epochs": 1, "batch_size": 16},
                "run": {"dir": str(tmp_path / "run")},
            },
            quiet=True,
        )
    assert result.steps > 2
    with pytest.warns(UserWarning):  # the catalog's pictures are in both parts of the log
        scores = mmtune.evaluate(
            result.artifact, str(tmp_path / "evaluation"), qrels=str(out / "judgments.jsonl"), allow_trained=True
        )
    assert scores.metric("ndcg@10", "text->image") > 0


def test_titles_as_candidates_are_positives_and_negatives_of_one_modality(tmp_path, shop):
    root, _ = shop
    skus = [line.split(",")[0] for line in (root / "items.csv").read_text().split("\n")[1:] if line]
    catalog = tmp_path / "titles.jsonl"
    catalog.write_text("".join(f'{{"sku": "{s}", "title": "article {s}", "split": "x"}}\n' for s in skus))
    mmtune.pairs_from_logs(root / "log.parquet", tmp_path / "out", **NAMES, catalog=catalog, candidate="title")
    first = pq.read_table(tmp_path / "out/pairs.parquet").to_pylist()[0]
    assert first["positive"] == f"article {first['item']}" and first["negative"][0].startswith("article ")
    assert (first["split"], first["item_split"]) == ("train", "x")
    packed = mmtune.pack(tmp_path / "out/pairs.parquet", tmp_path / "packed", workers=1)
    assert not packed.rejected and packed.negatives.pairs["text->text"] > 0


def test_pictures_inside_the_catalog_are_written_beside_the_pairs(tmp_path, shop):
    root, _ = shop
    skus = [line.split(",")[0] for line in (root / "items.csv").read_text().split("\n")[1:] if line]
    cells = [{"bytes": (root / f"photos/{s}.png").read_bytes(), "path": None} for s in skus]
    pq.write_table(pa.table({"sku": skus, "image": cells}), tmp_path / "items.parquet")
    mmtune.pairs_from_logs(root / "log.parquet", tmp_path / "out", **NAMES, catalog=tmp_path / "items.parquet")
    first = pq.read_table(tmp_path / "out/pairs.parquet").to_pylist()[0]
    assert (tmp_path / "out" / first["image"]).read_bytes() == (root / f"photos/{first['item']}.png").read_bytes()
    assert not mmtune.pack(tmp_path / "out/pairs.parquet", tmp_path / "packed", workers=1).rejected


def test_items_that_the_catalog_lacks_or_has_twice_are_counted(tmp_path, shop):
    root, _ = shop
    lines = (root / "items.csv").read_text().split("\n")
    photos = {line.split(",")[0]: str(root / line.split(",")[1]) for line in lines[1:] if line}
    some = list(photos)[:-10]
    (tmp_path / "items.csv").write_text("sku,photo\n" + "".join(f"{s},{photos[s]}\n" for s in [*some, some[0]]))
    whole = mmtune.pairs_from_logs(root / "log.parquet", tmp_path / "whole", **NAMES)
    result = mmtune.pairs_from_logs(root / "log.parquet", tmp_path / "out", **NAMES, catalog=tmp_path / "items.csv")
    counts = {(d["unit"], d["reason"]): d["count"] for d in result.dropped}
    assert result.pairs + counts["pairs", "the item is not in the catalog, or has no content there"] == whole.pairs
    assert counts["catalog rows", "an id that the catalog has twice; its first row is used"] == 1
    for options, message in (
        ({"catalog_id": "nr"}, "no column 'nr' \\(--catalog-id\\)"),
        ({"candidate": "nr"}, "no column 'nr' \\(--candidate\\)"),
    ):
        with pytest.raises(DataError, match=message):
            mmtune.pairs_from_logs(root / "log.parquet", tmp_path / "x", **NAMES, catalog=tmp_path / "items.csv", **options)
