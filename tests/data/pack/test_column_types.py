"""Types of metadata columns whose source has none, and of Parquet's decimals."""

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmtune.data.pack.column_types import number_columns, number_type
from mmtune.data.pack.pack import pack
from mmtune.data.shards import open_data
from mmtune.runtime.files import read_json


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "-2", "0"], int),
        (["1", "2.5"], float),
        (["1", "", "nan", "NaN"], int),
        ([" 3 ", ".5", "1e-05", "2."], float),
        (["9007199254740992"], int),
        (["9007199254740993"], None),
        (["007", "12"], None),
        (["1", "2 kg"], None),
        (["1,5"], None),
        (["+49170"], None),
        (["12E4"], None),
        (["1e+999"], None),
        (["inf"], None),
        (["0x10"], None),
        (["1_000"], None),
        (["١"], None),
        (["", "nan"], None),
        (["NULL", "3"], None),
    ],
)
def test_a_column_is_of_numbers_when_every_value_is_one(cells: list[str], kind: type | None) -> None:
    rows = [(n, {"x": c}) for n, c in enumerate(cells, 1)]
    assert number_columns(rows, ["x"]) == ({} if kind is None else {"x": kind})


def test_a_sign_alone_is_no_number() -> None:
    assert [number_type(c) for c in ("-", ".", "", "-.", "1e5")] == [None] * 5


def test_numbers_of_a_csv_are_packed_as_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "text,id,group,price,stock,code,note\nboot,01,7,1.5,3,007,\nshoe,02,8,2,,12,new\n", encoding="utf-8"
    )
    pack(tmp_path / "t.csv", tmp_path / "d")
    data = open_data(str(tmp_path / "d"))
    assert [data.meta(i) for i in range(2)] == [
        {"price": 1.5, "stock": 3, "code": "007"},
        {"price": 2.0, "code": "12", "note": "new"},
    ]
    assert data.ids == ["01", "02"] and data.groups == ["7", "8"]
    assert read_json(tmp_path / "d" / "index.json")["numbers"] == ["price", "stock"]


def test_folders_of_a_parquet_table_and_decimals(tmp_path: Path) -> None:
    for year in ("2023", "2024"):
        folder = tmp_path / "table" / f"year={year}"
        folder.mkdir(parents=True)
        rows = {"text": [f"boot {year}"], "price": [Decimal("12.50")], "units": [Decimal("3")], "code": ["5"]}
        types = pa.schema(
            [("text", pa.string()), ("price", pa.decimal128(8, 2)), ("units", pa.decimal128(8, 0)), ("code", pa.string())]
        )
        pq.write_table(pa.table(rows, types), folder / "part.parquet")
    pack(tmp_path / "table", tmp_path / "d")
    meta = open_data(str(tmp_path / "d")).meta(0)
    assert meta == {"price": 12.5, "units": 3, "code": "5", "year": 2023}  # a string of Parquet is meant as one
    assert isinstance(meta["units"], int)


def test_ids_of_decimals_are_whole_numbers(tmp_path: Path) -> None:
    types = pa.schema([("text", pa.string()), ("id", pa.decimal128(8, 1))])
    pq.write_table(pa.table({"text": ["a", "b"], "id": [Decimal("10.0"), Decimal("11.5")]}, types), tmp_path / "t.parquet")
    pack(tmp_path / "t.parquet", tmp_path / "d")
    assert open_data(str(tmp_path / "d")).ids == ["10", "11.5"]
