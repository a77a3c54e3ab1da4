"""Every file of ours has a format number: a newer one is refused in one line, and a file from before the number is read."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import yaml

import mmtune
from mmtune.comparison.confusable import Confusable
from mmtune.errors import DataError, MmtuneError
from mmtune.index.collection_layout import CollectionLayout
from mmtune.index.maintenance.backup import backup, restore
from mmtune.index.stores import faiss_files
from mmtune.index.stores.store_rows import read_stamp, stamp
from mmtune.mining.negatives_table import read_metadata, read_table
from mmtune.model.artifact.adapters import read_manifest as read_adapters
from mmtune.model.cross_encoder_load import load_cross_encoder
from mmtune.prediction.predictors import PREDICTORS
from mmtune.prediction.stored_predictors import load_predictors, save_predictors
from mmtune.runtime.format_number import check_format
from mmtune.serve.token_file import read_entries
from mmtune.training.checkpoint import Checkpoints
from mmtune.training.class_label_files import read_info
from tests.support import corpora
from tests.support.docs_helpers import ROOT

NEWER = 99
TRAIN = {"epochs": 1, "batch_size": 8, "precision": "fp32"}


def in_json(path: Path, key: str, number: int | None) -> None:
    document = json.loads(path.read_text())
    document.pop(key, None)
    path.write_text(json.dumps(document if number is None else {key: number, **document}))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One of each: packed data, an artifact with a stored predictor, embeddings, a negatives table, a run and a collection."""
    root = tmp_path_factory.mktemp("formats")
    data = corpora.packed(root, 12, columns=("image", "text"))
    run = mmtune.train(
        {"model": "tiny:clip", "data": {"train": data}, "train": TRAIN, "run": {"dir": str(root / "run")}}, quiet=True
    )
    mmtune.embed(run.artifact, data, root / "vectors")
    mmtune.mine(run.artifact, data, root / "mined.parquet", quiet=True)
    with mmtune.Collection(root / "shop", create=True) as c:
        c.build(run.artifact, data, quiet=True)
    return root, Path(data), Path(run.artifact)


def shards(made, tmp_path, number):
    _, data, _ = made
    copied = corpora.packed(tmp_path, 12, columns=("text",))
    in_json(Path(copied) / "index.json", "schema", number)
    return lambda: mmtune.open_data(copied)


def recipe(made, tmp_path, number):
    document = {"model": "tiny:clip", "data": {"train": "a"}} | ({} if number is None else {"format": number})
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(document))
    return lambda: mmtune.Recipe.load(tmp_path / "r.yaml")


def copy_of(directory: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(directory, tmp_path / directory.name))


def artifact(made, tmp_path, number):
    copied = copy_of(made[2], tmp_path)
    in_json(copied / "mmtune.json", "format", number)
    return lambda: mmtune.load(copied)


def adapters(made, tmp_path, number):
    document = {"base": "tiny:clip", "base_fingerprint": "x", "factors": {}, "rounded": [], "heads": [], "own_scales": []}
    (tmp_path / "adapters.json").write_text(json.dumps(document | ({} if number is None else {"format": number})))
    return lambda: read_adapters(tmp_path)


def cross_encoder(made, tmp_path, number):
    (tmp_path / "cross_encoder.json").write_text(json.dumps({"fingerprint": "x", "format": number}))
    return lambda: load_cross_encoder(tmp_path)


def collection(made, tmp_path, number):
    CollectionLayout(tmp_path / "c", create=True)
    in_json(tmp_path / "c" / "collection.json", "format", number)
    return lambda: mmtune.Collection(tmp_path / "c")


def faiss_store(made, tmp_path, number):
    copied = copy_of(made[0] / "shop", tmp_path)
    (manifest,) = [p for p in copied.rglob("manifest.json") if "index" in json.loads(p.read_text())][:1]
    in_json(manifest, "format", number)
    return lambda: faiss_files.read_manifest(manifest.parent)


def store_stamp(made, tmp_path, number):
    return lambda: read_stamp({**stamp("x", 4), "format": number}, 4, "table items")


def negatives(made, tmp_path, number):
    table = pq.read_table(made[0] / "mined.parquet")
    metadata = {k: v for k, v in table.schema.metadata.items() if k != b"format"}
    if number is not None:
        metadata[b"format"] = str(number).encode()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "n.parquet")
    return lambda: [*read_table(tmp_path / "n.parquet", read_metadata(tmp_path / "n.parquet").fingerprint)]


def predictor(made, tmp_path, number):
    model = mmtune.load(copy_of(made[2], tmp_path))
    vectors = np.eye(2, model.dim, dtype=np.float32)
    folder = save_predictors(model, {"image": PREDICTORS["knn"](["a", "b"], ["x", "y"], vectors, 1)})
    (path,) = folder.glob("*.safetensors")
    with safetensors.safe_open(path, "np") as f:
        document = json.loads(f.metadata()["predictor"])
    assert document.pop("format") == 1
    document |= {} if number is None else {"format": number}
    path.write_bytes(safetensors.numpy.save({"vectors": vectors}, metadata={"predictor": json.dumps(document)}))
    return lambda: load_predictors(model, "knn", ["image"])["image"].classes


def backup_file(made, tmp_path, number):
    backup(CollectionLayout(made[0] / "shop"), tmp_path / "b.tar")
    with tarfile.open(tmp_path / "b.tar") as old, tarfile.open(tmp_path / "new.tar", "w") as new:
        for member in old.getmembers():
            content = old.extractfile(member).read()
            if member.name == "sha256.json":
                document = json.loads(content)
                assert document["format"] == 2
                content = json.dumps({**document, "format": number} if number else document["files"]).encode()
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    return lambda: restore(tmp_path / "new.tar", tmp_path / "restored")


def embeddings(made, tmp_path, number):
    root, data, model = made
    copied = copy_of(root / "vectors", tmp_path)
    in_json(copied / "meta.json", "format", number)
    return lambda: mmtune.mine(str(model), str(data), tmp_path / "m.parquet", vectors=copied, quiet=True)


def checkpoint(made, tmp_path, number):
    copied = copy_of(made[0] / "run" / "checkpoints", tmp_path)
    in_json(copied / "last" / "trainer_state.json", "format", number)
    return lambda: Checkpoints(copied, 3).load("last")


def class_labels(made, tmp_path, number):
    (tmp_path / "info.json").write_text(json.dumps({"format": number}))
    return lambda: read_info(tmp_path)


def confusable(made, tmp_path, number):
    Confusable("text->image", "x", 0.1, []).save(tmp_path / "c.json")
    in_json(tmp_path / "c.json", "format", number)
    return lambda: Confusable.read(tmp_path / "c.json")


def tokens(made, tmp_path, number):
    (tmp_path / "t.json").write_text(json.dumps({"format": number, "tokens": []}))
    return lambda: read_entries(tmp_path / "t.json")


KINDS = {
    "packed data": shards,
    "recipe": recipe,
    "artifact": artifact,
    "adapters": adapters,
    "cross-encoder": cross_encoder,
    "collection": collection,
    "faiss store": faiss_store,
    "other stores": store_stamp,
    "negatives table": negatives,
    "stored predictor": predictor,
    "backup": backup_file,
    "embeddings": embeddings,
    "checkpoint": checkpoint,
    "classes of a run": class_labels,
    "confusable slice": confusable,
    "token file": tokens,
}
FROM_BEFORE_THE_NUMBER = [
    "packed data",
    "recipe",
    "negatives table",
    "stored predictor",
    "backup",
    "embeddings",
    "checkpoint",
]
"""Formats that had no number once; the others have had one from the first file on."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_newer_format_is_refused_in_one_line(kind, made, tmp_path):
    read = KINDS[kind](made, tmp_path, NEWER)
    with pytest.raises(
        MmtuneError, match=f"format {NEWER} is of a newer mmtune; this one .* reads up to [12]: update mmtune"
    ) as e:
        read()
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", FROM_BEFORE_THE_NUMBER)
def test_a_file_from_before_the_number_is_read(kind, made, tmp_path):
    assert KINDS[kind](made, tmp_path, None)()


def test_the_page_lists_every_format():
    page = (ROOT / "docs" / "formats.md").read_text().split("## Files that mmtune writes")[1]
    rows = [line.split("|")[1].strip() for line in page.split("\n") if line.startswith("| ")][1:]
    assert rows == [*KINDS]


def test_a_number_that_is_none_is_refused():
    assert check_format(1, 2, "f", DataError) == 1 and check_format(None, 2, "f", DataError, missing=1) == 1
    for wrong in (None, "1", 0, True, 1.5):
        with pytest.raises(DataError, match="f: format .* is none that mmtune"):
            check_format(wrong, 2, "f", DataError)
