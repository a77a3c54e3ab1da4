"""Small collections for the lifecycle's tests, built for real and copied."""

import io
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

import mmtune
from mmtune.contracts import Row
from mmtune.index.collection import Collection
from tests.support.corpora import COLOURS, packed

BASE, OTHER = "tiny:clip", "tiny:clip@7"
COLUMNS = ("image", "text")


def picture(name: str, seed: int) -> bytes:
    """A noisy square of a colour, as PNG."""
    rng = np.random.default_rng(seed)
    pixels = np.clip(np.array(COLOURS[name]) + rng.integers(-20, 21, (40, 40, 3)), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def row(id: str, name: str = "red", seed: int = 0, **meta) -> Row:
    return Row(id, name, {"image": picture(name, seed), "text": f"a {name} square".encode()}, meta)


@pytest.fixture(scope="session", name="shelf")
def shelf_fixture(tmp_path_factory):
    """data (24 items), held (12 held-out rows), and a collection with v1 live and v2 staged."""
    root = tmp_path_factory.mktemp("lifecycle")
    made = {"root": root, "data": packed(root, 24, 0, COLUMNS), "held": packed(root, 12, 1, COLUMNS)}
    with Collection(root / "coll", create=True) as coll:
        coll.build(BASE, made["data"], quiet=True)
        assert coll.promote("v1")["promoted"]
        coll.build(OTHER, quiet=True)
    return made


@pytest.fixture(scope="session", name="tuned")
def tuned_fixture(shelf, tmp_path_factory):
    """An artifact tuned on other images of the shelf's six colours."""
    recipe = {
        "model": BASE,
        "data": {"train": packed(shelf["root"], 24, 2, COLUMNS)},
        "train": {"epochs": 12, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
        "run": {"dir": str(tmp_path_factory.mktemp("run") / "r")},
    }
    return mmtune.train(recipe, quiet=True)["artifact"]


@pytest.fixture(name="coll")
def coll_fixture(shelf, tmp_path):
    """A copy of that collection."""
    shutil.copytree(shelf["root"] / "coll", tmp_path / "coll")
    with Collection(tmp_path / "coll") as opened:
        yield opened


def again(coll: Collection) -> Collection:
    """The same directory as another process would see it: nothing remembered."""
    return Collection(coll.path)


def blocks(coll: Collection, fingerprint: str) -> tuple[int, int]:
    """(vectors on disk, distinct contents among them) of one fingerprint."""
    held = coll.vector_cache(fingerprint, coll.layout.record("v1")["dim"])
    modalities = list(Path(held.directory).iterdir())
    rows = sum(held.check_block(path)[0] for m in modalities for path in m.glob("[!.]*.safetensors"))
    return rows, sum(len(held.keys(m.name)) for m in modalities)
