"""Read and write the files of a faiss store: segments of rows and vectors, and a manifest that lists the current segments.

    manifest.json               format, fingerprint, dim, base, segments, index; replaced atomically
    NAME.vectors.safetensors    "vectors" float32 [n, D]; the header holds the fingerprint and the tombstones (deleted ids)
    NAME.rows.arrow             id and metadata (JSON) of each row
    NAME.index                  faiss index over the base segment; absent for exact search
All files other than the manifest never change once they are written, and are read through memory maps. The base segment is
the large one that `build` writes; its rows are in descending order of id, because ties are broken by descending id. Later
changes are added as small segments. A file that the manifest does not list was left by a killed writer; the next write
removes it.
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
from mmtune.runtime.files import atomic_open, read_json, sha256_file, write_json
from mmtune.runtime.format_number import check_format

FORMAT = 1
MANIFEST = "manifest.json"

RowBlock = tuple[Sequence[str] | pa.Array, Sequence[str] | pa.Array, np.ndarray]
"""(ids [n], metadata as JSON strings [n], vectors float32 [n, D])."""


class StoreManifest(TypedDict):
    """The content of manifest.json.

    base: name of the base segment; None before the first `build`.
    segments: names of the segments that were added after the base segment, oldest first.
    index: settings of the index over the base segment.
    requested: arguments of the last `build`; files of earlier versions call this key "asked".
    sha256: {file name: SHA-256 hash of the file}; absent in files of earlier versions.
    changed: at most this many rows were added, replaced or deleted after the base segment; absent in files of earlier versions.
    """

    format: int
    fingerprint: str
    dim: int
    base: str | None
    segments: list[str]
    index: FaissIndexSettings
    requested: NotRequired[list[str | int | None]]
    sha256: NotRequired[dict[str, str]]
    changed: NotRequired[int]


@dataclass(frozen=True)
class Segment:
    """Memory-mapped rows and their vectors. deleted: tombstones, i.e. ids that were removed before these rows were added."""

    vectors: np.ndarray
    ids: pa.ChunkedArray
    meta: pa.ChunkedArray
    deleted: list[str]


def new_name() -> str:
    """Return a new unique segment name."""
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
    """Write a segment of `count` rows atomically and return its name.

    blocks: the rows, in order. Only one block is held in memory at a time.
    deleted: ids to record as tombstones.
    name: segment name; a new one by default.
    """
    name = name or new_name()
    metadata = {"fingerprint": fingerprint, "deleted": json.dumps(list(deleted))}
    size, written = count * dim * 4, 0
    header = json.dumps(
        {"__metadata__": metadata, "vectors": {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, size]}}
    ).encode()
    header += b" " * (-len(header) % 64)
    schema = pa.schema([("id", pa.large_string()), ("meta", pa.large_string())])
    with (
        # The vectors file is published last (context managers exit in reverse order): if it exists, so does the rows file.
        atomic_open(directory / f"{name}.vectors.safetensors") as f,
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
    """Memory-map the vectors file of a segment.

    Raises ModelError when the file records another fingerprint, and DataError when it is damaged.
    """
    file = map_tensors(path, "damaged ({error}); build the version again")
    stamped = file.metadata.get("fingerprint")
    if stamped != fingerprint:
        raise ModelError(f"{path}: vectors of another model ({stamped}, not {fingerprint}); build the version again")
    if "vectors" not in file.arrays:
        raise DataError(f"{path}: damaged (no vectors); build the version again")
    return file


def read_segment(directory: Path, name: str, fingerprint: str) -> Segment:
    """Memory-map a segment. Raises FileNotFoundError when a writer has replaced and removed it in the meantime."""
    file = map_segment(directory / f"{name}.vectors.safetensors", fingerprint)
    with pa.memory_map(str(directory / f"{name}.rows.arrow")) as f:
        table = pa.ipc.open_file(f).read_all()
    return Segment(file.arrays["vectors"], table["id"], table["meta"], json.loads(file.metadata.get("deleted", "[]")))


def read_manifest(directory: Path) -> StoreManifest:
    """Read manifest.json. Raises DataError when it does not exist, or when its format is not supported."""
    if not (directory / MANIFEST).exists():
        raise DataError(f"{directory}: no faiss store there (no {MANIFEST}); restore the directory or build the version again")
    manifest = read_json(directory / MANIFEST)
    check_format(manifest.get("format"), FORMAT, directory / MANIFEST, DataError)
    if "asked" in manifest:  # earlier name of the key "requested"
        manifest.setdefault("requested", manifest.pop("asked"))
    if "short" in manifest["index"]:  # earlier name of the key "search_dim"
        manifest["index"].setdefault("search_dim", manifest["index"].pop("short"))
    return manifest


def publish(directory: Path, manifest: StoreManifest) -> None:
    """Replace the manifest atomically, with the hashes of all files that it lists, then delete the other files.

    Readers that have memory-mapped a deleted file can still use it.
    """
    named, known = {*manifest["segments"], manifest["base"]}, manifest.get("sha256", {})
    listed = [p for p in directory.iterdir() if p.name.split(".")[0] in named]
    hashes = {p.name: known.get(p.name) or sha256_file(p) for p in sorted(listed)}
    write_json(directory / MANIFEST, {**manifest, "sha256": hashes})
    for path in directory.iterdir():
        if path.name != MANIFEST and path.name.split(".")[0] not in named:
            path.unlink(missing_ok=True)


def damaged_files(directory: Path) -> list[str]:
    """Read every file that the manifest lists; return one line per file that is missing or not what was written."""
    faults = []
    for name, expected in read_manifest(directory).get("sha256", {}).items():
        path = directory / name
        if not path.exists():
            faults.append(f"{path}: is missing")
        elif sha256_file(path) != expected:
            faults.append(f"{path}: damaged: its SHA-256 hash is not the one in {MANIFEST}")
    return faults
