"""The files of a faiss directory: segments of rows and vectors, and the manifest that says which of them count.

    manifest.json               format, fingerprint, dim, base, segments, index: replaced in one step; the rest never changes
    NAME.vectors.safetensors    "vectors" float32 [n, D], mapped; fingerprint and tombstones (deleted ids) in its header
    NAME.rows.arrow             id, meta (JSON); the base's rows are in descending order of id, which is the order of ties
    NAME.index                  faiss, for the base, when there is an index
A file that the manifest does not name was left by a killed writer, and is removed with the next write.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa

from mmtune.errors import DataError, ModelError
from mmtune.index.stores.faiss_index import FaissIndexSettings
from mmtune.index.tensor_files import TensorFile, map_tensors
from mmtune.runtime.files import atomic_open, read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"

RowBlock = tuple[Sequence[str] | pa.Array, Sequence[str] | pa.Array, np.ndarray]
"""ids [n], metadata as JSON [n], vectors [n, D]."""


class StoreManifest(TypedDict):
    """manifest.json. base: name of the base segment; segments: names of those after it, oldest first; requested: the arguments
    of the last `build` (older files call it "asked")."""

    format: int
    fingerprint: str
    dim: int
    base: str | None
    segments: list[str]
    index: FaissIndexSettings
    requested: NotRequired[list[str | int | None]]


@dataclass(frozen=True)
class Segment:
    """Rows with their vectors, all mapped; `deleted`: tombstones, ids that were removed before these rows were added."""

    vectors: np.ndarray
    ids: pa.ChunkedArray
    meta: pa.ChunkedArray
    deleted: list[str]


def new_name() -> str:
    """A name that no file has."""
    return uuid.uuid4().hex[:16]


def write_segment(
    directory: Path,
    fingerprint: str,
    dim: int,
    count: int,
    blocks: Iterable[RowBlock],
    deleted: Sequence[str] = (),
    name: str | None = None,
) -> str:
    """Publish a segment of `count` rows; returns its name. blocks: its rows in order, of which one is in memory at a time."""
    name = name or new_name()
    metadata = {"fingerprint": fingerprint, "deleted": json.dumps(list(deleted))}
    size, written = count * dim * 4, 0
    header = json.dumps(
        {"__metadata__": metadata, "vectors": {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, size]}}
    ).encode()
    header += b" " * (-len(header) % 64)
    schema = pa.schema([("id", pa.large_string()), ("meta", pa.large_string())])
    with (
        atomic_open(directory / f"{name}.vectors.safetensors") as f,  # published last: when it is there, the rows are, too
        atomic_open(directory / f"{name}.rows.arrow") as g,
        pa.ipc.new_file(g, schema) as out,
    ):
        f.write(len(header).to_bytes(8, "little") + header)
        for ids, meta, vectors in blocks:
            f.write(np.ascontiguousarray(vectors, np.float32).data)
            out.write_batch(pa.record_batch([pa.array(x, pa.large_string()) for x in (ids, meta)], schema=schema))
            written += vectors.nbytes
    assert written == size, (written, size)
    return name


def map_segment(path: Path, fingerprint: str) -> TensorFile:
    """The vectors of a segment, mapped. ModelError for another fingerprint, DataError for a damaged file."""
    file = map_tensors(path, "damaged ({error}); build the version again")
    stamped = file.metadata.get("fingerprint")
    if stamped != fingerprint:
        raise ModelError(f"{path}: vectors of another model ({stamped}, not {fingerprint})")
    if "vectors" not in file.arrays:
        raise DataError(f"{path}: damaged (no vectors); build the version again")
    return file


def read_segment(directory: Path, name: str, fingerprint: str) -> Segment:
    """FileNotFoundError when a writer has replaced it meanwhile."""
    file = map_segment(directory / f"{name}.vectors.safetensors", fingerprint)
    with pa.memory_map(str(directory / f"{name}.rows.arrow")) as f:
        table = pa.ipc.open_file(f).read_all()
    return Segment(file.arrays["vectors"], table["id"], table["meta"], json.loads(file.metadata.get("deleted", "[]")))


def read_manifest(directory: Path) -> StoreManifest:
    """DataError when there is no store, or one of another format."""
    if not (directory / MANIFEST).exists():
        raise DataError(f"{directory}: no faiss store there (no {MANIFEST})")
    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise DataError(f"{directory}: store format {manifest.get('format')!r}; this mmtune reads {FORMAT}")
    if "asked" in manifest:  # the key's older name
        manifest.setdefault("requested", manifest.pop("asked"))
    if "short" in manifest["index"]:  # likewise
        manifest["index"].setdefault("search_dim", manifest["index"].pop("short"))
    return manifest


def publish(directory: Path, manifest: StoreManifest) -> None:
    """The one step of a write; then files that are no longer named are removed (readers that mapped them keep them)."""
    write_json(directory / MANIFEST, manifest)
    named = {*manifest["segments"], manifest["base"]}
    for path in directory.iterdir():
        if path.name != MANIFEST and path.name.split(".")[0] not in named:
            path.unlink(missing_ok=True)
