"""Hugging Face datasets on disk are sources of `pack`, and DATA without packing."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.data.shards import open_data
from mmtune.data.sources.row_source import open_source
from mmtune.errors import DataError, DataWarning
from tests.support.data_helpers import picture, sound
from tests.support.hub_layouts import clone_of_repository, hub_table, save_dict_to_disk, save_to_disk

NAMES = ["ankle boot", "shoe"]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def boots(start: int, count: int, text: bool = True) -> pa.Table:
    rows: list[dict[str, object]] = [
        {"image": {"bytes": picture(i), "path": None}, "label": i % 2} | ({"text": f"boot {i}"} if text else {})
        for i in range(start, start + count)
    ]
    return hub_table(rows, classes={"label": NAMES})


SPLITS = {"train": boots(0, 5), "validation": boots(10, 3)}


@pytest.mark.parametrize("layout", [save_dict_to_disk, clone_of_repository])
def test_both_splits_are_read_with_the_names_of_classes(layout, tmp_path: Path) -> None:
    folder = layout(SPLITS, tmp_path / "x")
    data = open_data(str(folder))
    assert len(data) == 8 and [data.read(i, "image") for i in (0, 5)] == [picture(0), picture(10)]
    assert data.column("split") == ["train"] * 5 + ["validation"] * 3
    assert data.column("label") == [NAMES[i % 2] for i in (*range(5), *range(10, 13))]
    assert [data.read(i, "text").decode() for i in (0, 7)] == ["boot 0", "boot 12"]
    packed = pack(folder, tmp_path / "out", split="split", columns={"text": "label"}, group="label")
    assert {n: s.packed for n, s in packed.splits.items()} == {"train": 5, "validation": 3}
    train = open_data(str(tmp_path / "out" / "train"))
    assert train.groups == [NAMES[i % 2] for i in range(5)] and train.read(0, "text") == b"ankle boot"


def test_one_dataset_in_several_files_and_one_split_of_a_dict(tmp_path: Path) -> None:
    one = save_to_disk(boots(0, 7), tmp_path / "one", shards=3)
    (one / "cache-0123.arrow").write_bytes(b"what map() left behind")
    data = open_data(str(one))
    assert [data.read(i, "image") for i in range(7)] == [picture(i) for i in range(7)]
    assert "split" not in data.meta(0)
    save_dict_to_disk(SPLITS, tmp_path / "dict")
    assert len(open_data(str(tmp_path / "dict" / "validation"))) == 3


def test_sounds_of_a_dataset(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"audio": {"bytes": sound(i), "path": f"{i}.wav"}, "text": f"hum {i}"} for i in range(3)]
    data = open_data(str(save_to_disk(hub_table(rows, ("audio",)), tmp_path / "x")))
    assert (
        data.modalities == ["audio", "text"] and data.ids == ["0.wav", "1.wav", "2.wav"] and data.read(1, "audio") == sound(1)
    )


def test_a_dataset_is_data_of_every_verb_and_packed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_to_disk(boots(0, 6), tmp_path / "x")
    (tmp_path / "r.yaml").write_text("model: tiny:clip\ndata: {train: '???'}\ntrain: {epochs: 1, batch_size: 3}\n")
    train = ["train", str(tmp_path / "r.yaml"), f"data.train={folder}", f"run.dir={tmp_path / 'run'}", "--quiet"]
    assert main(train) == 0
    assert "a Hugging Face dataset; packing it into" in capsys.readouterr().err
    assert main(["eval", "tiny:clip", str(folder), "--json", "--quiet"]) == 0
    said = capsys.readouterr()
    assert "packing" not in said.err and json.loads(said.out)["directions"]["image->text"]["queries"] == 6


def test_a_changed_dataset_is_packed_again_and_rejected_rows_are_said(tmp_path: Path) -> None:
    folder = save_to_disk(boots(0, 4), tmp_path / "x")
    assert len(open_data(str(folder))) == 4
    bad: list[dict[str, object]] = [{"image": {"bytes": picture(1) if i else b"<html>", "path": None}} for i in range(3)]
    save_to_disk(hub_table(bad), tmp_path / "y")
    for file in (tmp_path / "y").iterdir():
        file.replace(folder / file.name)
    for _ in range(2):  # the warning does not depend on whether it was packed now
        with pytest.warns(DataWarning, match=r"1 of 3 rows rejected \(row .*\), listed in .*rejected\.jsonl"):
            assert len(open_data(str(folder))) == 2


def test_damaged_datasets_are_one_line(tmp_path: Path) -> None:
    folder = save_to_disk(boots(0, 4), tmp_path / "x", shards=2)
    second = folder / "data-00001-of-00002.arrow"
    second.write_bytes(second.read_bytes()[:200])
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: (not a readable Arrow file|damaged)"):
        open_data(str(folder))
    second.unlink()
    with pytest.raises(DataError, match="missing, but state.json lists it"):
        open_data(str(folder))
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match="not the state of a saved dataset"):
        open_source(folder)


def test_a_repository_of_csv_files(tmp_path: Path) -> None:
    for split, texts in (("train", ["a", "b"]), ("test", ["c"])):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / f"{split}.csv").write_text("text,price\n" + "".join(f"{t},3\n" for t in texts))
    (tmp_path / "x" / "README.md").write_text("# prices")
    result = pack(tmp_path / "x", tmp_path / "out", split="split")
    assert {n: s.packed for n, s in result.splits.items()} == {"train": 2, "test": 1}
    assert open_data(str(tmp_path / "out" / "train")).column("price") == [3, 3]


def test_what_the_library_itself_writes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [{"bytes": picture(i), "path": None} for i in range(5)], "label": [0, 1, 0, 1, -1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "x"))
    (tmp_path / "y" / "data").mkdir(parents=True)
    made.to_parquet(str(tmp_path / "y" / "data" / "train-00000-of-00001.parquet"))
    for folder in ("x", "y"):
        data = open_data(str(tmp_path / folder))
        assert data.column("label") == [*NAMES, *NAMES, None] and data.read(4, "image") == picture(4)
        assert data.column("split") == ["train"] * 5
