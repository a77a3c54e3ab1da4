"""Rows in memory: the same vectors, weights and shards as from packed files; packed once; changed rows are refused on --resume."""

import io

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
from PIL import Image as PILImage

import mmtune
from mmtune.data.in_memory import pack_in_cache
from mmtune.data.sources.memory_rows import is_in_memory
from mmtune.errors import DataError, DataWarning, TrainingError
from tests.support import corpora
from tests.support.data_helpers import picture, sound


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A CSV with pictures and sounds beside it, and its rows."""
    root = tmp_path_factory.mktemp("memory")
    source = corpora.source(root / "source")
    rows = [r for r in pd.read_csv(source).to_dict("records")]
    return source, rows, corpora.packed(root)


def pixels(folder, row):
    return PILImage.open(folder / row["image"])


def forms(source, rows):
    """The same rows as paths, bytes, dictionaries, open files, and library objects."""
    folder = source.parent

    def each(image, audio):
        return [{**r, "image": image(folder / r["image"]), "audio": audio(folder / r["audio"])} for r in rows]

    table = [{**r, "image": {"bytes": (folder / r["image"]).read_bytes(), "path": None}, "audio": None} for r in rows]
    return {
        "paths": each(str, lambda p: p),
        "bytes": each(lambda p: p.read_bytes(), lambda p: io.BytesIO(p.read_bytes())),
        "files": each(lambda p: open(p, "rb"), lambda p: open(p, "rb")),
        "objects": each(PILImage.open, soundfile.read),
        "arrays": each(
            lambda p: np.asarray(PILImage.open(p)),
            lambda p: dict(zip(("array", "sampling_rate"), soundfile.read(p), strict=True)),
        ),
        "frame": pd.DataFrame(each(PILImage.open, str)),
        "table": pa.Table.from_pylist(table),
        "lists": {c: [r[c] for r in each(str, str)] for c in rows[0]},
    }


FORMS = ("paths", "bytes", "files", "objects", "arrays", "frame", "table", "lists")


@pytest.mark.parametrize("form", FORMS)
def test_vectors_are_those_of_packed_files(files, form):
    source, rows, packed = files
    model, given = mmtune.load("tiny:all"), mmtune.open_data(forms(source, rows)[form])
    data = mmtune.open_data(packed)
    assert given.ids == data.ids and given.groups == data.groups and given.column("shade") == data.column("shade")
    from mmtune.embedding.embed_rows import embed_data

    one, two = embed_data(model, given, quiet=True), embed_data(model, data, quiet=True)
    assert set(two) - set(one) == ({"audio"} if form == "table" else set())
    for name in one:
        assert np.array_equal(one[name].vectors, two[name].vectors), name


def test_a_datasets_dataset_is_packed_with_its_own_files(files, tmp_path):
    datasets = pytest.importorskip("datasets")
    source, rows, packed = files
    columns = {
        "image": [str(source.parent / r["image"]) for r in rows],
        "text": [r["text"] for r in rows],
        "sku": [r["group"] for r in rows],
        "nr": [r["id"] for r in rows],
    }
    given = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    opened = mmtune.open_data(given, id="nr", group="sku")
    data = mmtune.open_data(packed)
    assert opened.ids == data.ids and opened.groups == data.groups
    assert [opened.read(i, "image") for i in range(3)] == [data.read(i, "image") for i in range(3)]
    with pytest.raises(DataError, match="a dataset with the splits train; give one of them"):
        mmtune.open_data(datasets.DatasetDict({"train": given}))


def test_verbs_take_rows(files, tmp_path):
    source, rows, packed = files
    given = forms(source, rows)["bytes"]
    by_rows, by_name = mmtune.evaluate("tiny:all", given), mmtune.evaluate("tiny:all", packed)
    assert by_rows.metric("map") == by_name.metric("map")
    options = {"directions": ["text->image"]}
    tables = [mmtune.mine("tiny:all", d, tmp_path / f"{i}.parquet", options, quiet=True) for i, d in enumerate((given, packed))]
    assert tables[0].to_pandas().equals(tables[1].to_pandas()) and tables[0].mined
    embedded = mmtune.embed("tiny:all", given, tmp_path / "v", ["text"], quiet=True)
    assert embedded.counts["text"].rows == len(rows)
    assert mmtune.pack(given, tmp_path / "p").packed == len(rows)
    renamed = [{"pic": r["image"], "words": r["text"], "sku": r["group"], "nr": r["id"]} for r in given]
    names = {"columns": {"image": "pic", "text": "words"}, "id": "nr", "group": "sku"}
    assert mmtune.evaluate("tiny:all", renamed, modalities=["image", "text"], **names).metric("map") == mmtune.evaluate(
        "tiny:all", packed, modalities=["image", "text"]
    ).metric("map")
    with pytest.raises(DataError, match="columns, id and group are for rows in memory"):
        mmtune.evaluate("tiny:all", packed, group="sku")


def recipe(run, **data):
    train = {"epochs": 2, "batch_size": 8, "precision": "fp32", "checkpoint_every": 1}
    return {"model": "tiny:clip", "train": train, "run": {"dir": str(run)}, **({"data": data} if data else {})}


def test_training_on_rows_equals_training_on_files_and_a_resumed_run_refuses_other_rows(files, tmp_path, monkeypatch):
    from mmtune.training.loop import Trainer

    source, rows, packed = files
    given = forms(source, rows)["bytes"]

    def weights(run):
        return (tmp_path / run / "artifact" / "weights.safetensors").read_bytes()

    mmtune.train(recipe(tmp_path / "files", train=packed, val=packed, allow_trained=True), quiet=True)
    with pytest.warns(UserWarning):
        mmtune.train(recipe(tmp_path / "rows", allow_trained=True), data=given, val=given, quiet=True)
    assert weights("rows") == weights("files")
    (tmp_path / "r.yaml").write_text("model: tiny:clip\n")
    step, done = Trainer.step, []

    def killed(self, batch):
        done.append(batch)
        if len(done) == 4:
            raise KeyboardInterrupt
        return step(self, batch)

    mmtune.train(recipe(tmp_path / "whole"), data=given, quiet=True)
    monkeypatch.setattr(Trainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        mmtune.train(recipe(tmp_path / "run"), data=given, quiet=True)
    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(TrainingError, match="the run to resume has other rows in memory as data.train; use the same rows"):
        mmtune.train(recipe(tmp_path / "run"), data=given[1:], resume=True, quiet=True)
    mmtune.train(recipe(tmp_path / "run"), data=given, resume=True, quiet=True)
    assert weights("run") == weights("whole")


def test_rows_are_packed_once_and_changed_files_again(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(0))
    rows = [{"image": str(tmp_path / "a.png"), "text": "a"}, {"image": picture(1), "text": "b"}]
    first = pack_in_cache(rows)
    stamp = (first / "index.json").stat().st_mtime_ns
    assert pack_in_cache(rows) == first and (first / "index.json").stat().st_mtime_ns == stamp
    (tmp_path / "a.png").write_bytes(picture(2, size=30))
    assert pack_in_cache(rows) != first
    assert pack_in_cache(rows, group="text") != pack_in_cache(rows)


def test_what_cannot_be_used_is_said(tmp_path):
    good = [{"text": f"t{i}", "audio": (np.zeros(800) + 0.1 * i, 8000)} for i in range(30)]
    with pytest.warns(DataWarning, match=r"1 of 31 rows rejected \(row 31: audio: "):
        assert len(mmtune.open_data([*good, {"text": "x", "audio": b"no sound"}])) == 30
    for _ in range(2):  # a pack that was refused is refused again
        with pytest.raises(DataError, match=r"1 of 2 rows rejected .*; repair them or leave them out"):
            mmtune.open_data([{"text": "x", "audio": b"no sound"}, {"text": "y", "audio": sound(0)}])
    for wrong, says in (
        ([], "no rows"),
        ({"text": ["a"], "image": []}, "lists of different lengths"),
        (7, "data: a int; give shards, opened data"),
    ):
        with pytest.raises(DataError, match=says):
            mmtune.open_data(wrong)
    assert not is_in_memory(["a.tar", "b.tar"]) and not is_in_memory("a") and is_in_memory([{"text": "a"}])
