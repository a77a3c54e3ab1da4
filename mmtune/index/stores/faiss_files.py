"""The files of a faiss directory: segments of rows and vectors, and the manifest that says which of them count.

    manifest.json               format, fingerprint, dim, base, segments, index: replaced in one step; the rest never changes
    NAME.vectors.safetensors    "vectors" float32 [n, D], mapped; fingerprint and deleted ids in its header
    NAME.rows.arrow             id, meta (JSON); the base's rows lie in descending order of id, which is the order of ties
    NAME.index                  faiss, for the base, when there is one
A file that the manifest does not name is what a killed writer left, and goes with the next write.
"""

import json
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmtune.errors import DataError, ModelError
from mmtune.runtime.files import atomic_open, read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"


Block = tuple[Sequence[str] | pa.Array, Sequence[str] | pa.Array, np.ndarray]
"""ids [n], metadata as JSON [n], vectors [n, D]."""


@dataclass(frozen=True)
class Segment:
    """Rows with their vectors, all mapped; `deleted` ids were removed before these rows were added."""

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
    blocks: Iterable[Block],
    deleted: Sequence[str] = (),
    name: str | None = None,
) -> str:
    """Publish a segment of `count` rows; returns its name. blocks: its rows in order, never all of them in memory."""
    name = name or new_name()
    metadata = {"fingerprint": fingerprint, "deleted": json.dumps(list(deleted))}
    size, written = count * dim * 4, 0
    header = json.dumps(
        {"__metadata__": metadata, "vectors": {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, size]}}
    ).encode()
    header += b" " * (-len(header) % 64)
    schema = pa.schema([("id", pa.large_string()), ("meta", pa.large_string())])
    with (
        atomic_open(directory / f"{name}.vectors.safetensors") as f,  # published last: who sees it has the rows, too
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


def map_vectors(path: Path, fingerprint: str) -> tuple[np.ndarray, dict[str, Any]]:
    """(vectors [n, D] mapped, header's metadata). ModelError for another fingerprint, DataError for a broken file."""
    try:
        with open(path, "rb") as f:
            size = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(size))
        metadata = header["__metadata__"]
        if metadata["fingerprint"] != fingerprint:
            raise ModelError(f"{path}: vectors of another model ({metadata['fingerprint']}, not {fingerprint})")
        shape = tuple(header["vectors"]["shape"])
        vectors = np.memmap(path, np.float32, "r", 8 + size, shape) if shape[0] else np.zeros(shape, np.float32)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError) as e:
        raise DataError(f"{path}: damaged ({e}); build the version again") from None
    return vectors.view(np.ndarray), metadata


def read_segment(directory: Path, name: str, fingerprint: str) -> Segment:
    """FileNotFoundError when a writer has replaced it meanwhile."""
    vectors, metadata = map_vectors(directory / f"{name}.vectors.safetensors", fingerprint)
    with pa.memory_map(str(directory / f"{name}.rows.arrow")) as f:
        table = pa.ipc.open_file(f).read_all()
    return Segment(vectors, table["id"], table["meta"], json.loads(metadata["deleted"]))


def read_manifest(directory: Path) -> dict[str, Any]:
    """DataError when there is no store, or one of another format."""
    if not (directory / MANIFEST).exists():
        raise DataError(f"{directory}: no faiss store there (no {MANIFEST})")
    manifest = read_json(directory / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise DataError(f"{directory}: store format {manifest.get('format')!r}; this mmtune reads {FORMAT}")
    return manifest


def publish(directory: Path, manifest: dict[str, Any]) -> None:
    """The one step of a write; then what is no longer named goes (readers that mapped it keep it)."""
    write_json(directory / MANIFEST, manifest)
    named = {*manifest["segments"], manifest["base"]}
    for path in directory.iterdir():
        if path.name != MANIFEST and path.name.split(".")[0] not in named:
            path.unlink(missing_ok=True)
