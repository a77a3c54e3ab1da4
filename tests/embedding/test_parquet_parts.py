"""`embed` into a directory in which other data were embedded: no vector of the other data is left."""

from pathlib import Path

import numpy as np
import pytest

from mmtune.data.shards.dataset import open_data
from mmtune.embedding.parquet_parts import embed, read_meta
from mmtune.model.artifact import load
from tests.data.shards.test_dataset import tar
from tests.support.data_helpers import picture, sound
from tests.support.public_reports import embedded


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def shards(folder: Path, start: int, count: int, kind: str = "png") -> str:
    """`count` shards of two rows each: a picture or a sound, and a caption."""
    folder.mkdir()
    for i in range(start, start + 2 * count, 2):
        rows = [(f"{j:03d}", picture(j) if kind == "png" else sound(j)) for j in (i, i + 1)]
        tar(folder / f"{i:03d}.tar", [m for k, d in rows for m in ((f"{k}.{kind}", d), (f"{k}.txt", f"boot {k}".encode()))])
    return str(folder)


def test_parts_of_other_data_are_removed(tmp_path: Path) -> None:
    model, out = load("tiny:all"), tmp_path / "e"
    embed(model, shards(tmp_path / "old", 0, 3), out, quiet=True)
    assert len(embedded(out, "image")) == 6
    new = shards(tmp_path / "new", 50, 1, "wav")
    result = embed(model, new, out, quiet=True)
    assert sorted(result.counts) == ["audio", "text"] and read_meta(out) == result.to_dict()
    assert sorted(embedded(out, "audio")) == sorted(embedded(out, "text")) == ["050", "051"]
    assert not list((out / "image").glob("*.parquet"))


def test_a_run_that_was_killed_leaves_nothing_of_its_data(tmp_path: Path) -> None:
    model, out = load("tiny:all"), tmp_path / "e"
    embed(model, shards(tmp_path / "old", 0, 2), out, quiet=True)
    (out / "meta.json").unlink()  # as a run that was killed before its end
    embed(model, shards(tmp_path / "new", 50, 1), out, ["text"], quiet=True)
    assert sorted(embedded(out, "text")) == ["050", "051"] and not embedded(out, "image")


def test_another_modality_of_the_same_data_is_kept_and_counted(tmp_path: Path) -> None:
    model, out, data = load("tiny:all"), tmp_path / "e", shards(tmp_path / "x", 0, 2)
    first = embed(model, data, out, ["image"], quiet=True)
    before = embedded(out, "image")
    second = embed(model, data, out, ["text"], quiet=True)
    assert second.counts["image"] == first.counts["image"] and second.counts["text"].rows == 4
    after = embedded(out, "image")
    assert sorted(after) == sorted(open_data(data).ids) and all(np.array_equal(before[k], after[k]) for k in after)
