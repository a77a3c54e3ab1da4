"""`--skip-bad`: one value that cannot be decoded does not end `embed` or `train`; how many are skipped is said."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmtune.cli import main
from mmtune.data import skip_bad
from mmtune.data.shards.dataset import open_data
from mmtune.data.skip_bad import without_undecodable
from mmtune.errors import DataError, DataWarning
from tests.data.shards.test_dataset import tar
from tests.support.data_helpers import picture
from tests.support.public_reports import embedded

RECIPE = "model: tiny:clip\ndata: {train: '???'}\ntrain: {epochs: 1, batch_size: 4}\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


def rows_with_two_bad_pictures(path: Path) -> Path:
    members = []
    for i in range(10):
        members += [(f"{i}.png", b"<html>%d" % i if i in (3, 7) else picture(i)), (f"{i}.txt", b"boot %d" % i)]
    return tar(path, members)


def test_values_that_cannot_be_decoded_are_absent(tmp_path: Path) -> None:
    data = open_data(str(rows_with_two_bad_pictures(tmp_path / "x.tar")))
    with pytest.warns(
        DataWarning, match=r"x\.tar: 2 of 10 image values cannot be decoded and are skipped \('3': not a readable"
    ):
        left = without_undecodable(data)
    assert np.flatnonzero(~left.present["image"]).tolist() == [3, 7] and left.present["text"].all() and len(left) == 10
    assert left.labels["image"][3] == 0 and left.ids == data.ids and left.fingerprint != data.fingerprint
    assert left.read(3, "text") == b"boot 3" and left.read(4, "image") == picture(4)
    with pytest.raises(KeyError, match="no image"):
        left.read(3, "image")
    assert data.present["image"].all()  # the Data that was given is unchanged


def test_what_was_found_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(str(rows_with_two_bad_pictures(tmp_path / "x.tar")))
    with pytest.warns(DataWarning):
        first = without_undecodable(data)
    monkeypatch.setattr(skip_bad, "_decode_all", lambda *_: pytest.fail("decoded again"))
    with pytest.warns(DataWarning, match="2 of 10"):
        assert without_undecodable(data).fingerprint == first.fingerprint


def test_good_data_are_unchanged_and_bad_ones_refused(tmp_path: Path) -> None:
    good = open_data(str(tar(tmp_path / "good.tar", [(f"{i}.png", picture(i)) for i in range(2)])))
    assert without_undecodable(good) is good
    bad = open_data(str(tar(tmp_path / "bad.tar", [("0.png", b"<html>")])))
    with pytest.warns(DataWarning), pytest.raises(DataError, match="no value can be decoded"):
        without_undecodable(bad)


def test_embed_and_train_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(rows_with_two_bad_pictures(tmp_path / "x.tar"))
    embed = ["embed", "tiny:clip", source, "--out", str(tmp_path / "e"), "--quiet"]
    assert main(embed) == 2 and "row '3'" in (err := capsys.readouterr().err) and "--skip-bad" in err
    assert main([*embed, "--skip-bad", "--json"]) == 0
    said = capsys.readouterr()
    assert "2 of 10 image values cannot be decoded and are skipped" in said.err
    assert json.loads(said.out)["counts"]["image"] == {"rows": 8, "missing": 2, "parts": 1}
    assert sorted(embedded(tmp_path / "e", "image")) == [str(i) for i in range(10) if i not in (3, 7)]
    assert len(embedded(tmp_path / "e", "text")) == 10
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    train = ["train", str(tmp_path / "recipe.yaml"), f"data.train={source}", f"run.dir={tmp_path / 'run'}", "--quiet"]
    assert main(train) == 2 and "--skip-bad" in capsys.readouterr().err
    train[3] = f"run.dir={tmp_path / 'run2'}"
    assert main([*train, "--skip-bad"]) == 0
    assert "2 of 10 image values cannot be decoded and are skipped" in capsys.readouterr().err
    assert "skip_bad: true" in (tmp_path / "run2" / "recipe.yaml").read_text()


def test_mine_eval_and_index_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, store = str(rows_with_two_bad_pictures(tmp_path / "x.tar")), str(tmp_path / "s")
    verbs = [
        ["eval", "tiny:clip", source, "--json"],
        ["mine", "tiny:clip", source, "--out", str(tmp_path / "n.parquet"), "--set", "guards.relative_margin=null", "--json"],
        ["index", "build", store, "--model", "tiny:clip", "--data", source, "--json"],
    ]
    for verb in verbs:
        assert main([*verb, "--quiet"]) == 2 and "--skip-bad" in capsys.readouterr().err, verb
        assert main([*verb, "--quiet", "--skip-bad"]) == 0, verb
        said = capsys.readouterr()
        assert "2 of 10 image values cannot be decoded and are skipped" in said.err, verb
        document = json.loads(said.out)
        if verb[0] == "eval":
            assert document["directions"]["image->text"]["queries"] == 8
        if verb[0] == "index":
            assert document["vectors"] == {"image": 8}, document
    assert main(["index", "upsert", store, "--data", source]) == 1 and "--skip-bad" in capsys.readouterr().out
    assert main(["index", "upsert", store, "--data", source, "--skip-bad"]) == 0
