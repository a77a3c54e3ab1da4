"""URLs where local files are needed are refused: pathlib would make the directory "s3:" of them."""

import os

import pytest

import mmtune
from mmtune.cli import main
from mmtune.data.pack.pack import pack
from mmtune.errors import DataError
from tests.support.data_helpers import write_csv


def test_results_are_not_written_to_a_directory_called_like_a_protocol(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = write_csv(tmp_path / "t.csv", [{"id": "1", "text": "a"}])
    assert main(["pack", str(table), "--out", "s3://bucket/packed"]) == 2
    assert capsys.readouterr().err.startswith(
        "mmtune pack: --out: s3://bucket/packed is a URL; files are written to a local directory"
    )
    with pytest.raises(DataError, match="^--out: gs://bucket/packed is a URL"):
        pack(table, "gs://bucket/packed")
    pack(table, tmp_path / "packed")
    with pytest.raises(DataError, match="^--out: s3:/bucket/vectors is a URL"):
        mmtune.embed("tiny:clip", str(tmp_path / "packed"), "s3://bucket/vectors", quiet=True)
    recipe = {"model": "tiny:clip", "data": {"train": str(tmp_path / "packed")}, "run": {"dir": "s3://bucket/run"}}
    with pytest.raises(DataError, match="^run.dir: s3:/bucket/run is a URL"):
        mmtune.train(recipe, quiet=True)
    assert not [n for n in os.listdir(tmp_path) if ":" in n]


def test_a_source_at_an_address_is_refused_by_its_name(tmp_path):
    with pytest.raises(DataError, match=r"^s3://bucket/t\.csv: SOURCE must be a local file or folder .*; download it first"):
        pack("s3://bucket/t.csv", tmp_path / "out")
