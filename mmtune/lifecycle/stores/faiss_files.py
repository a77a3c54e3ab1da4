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
from mmtune.files import atomic_open, read_json, write_json

FORMAT = 1
MANIFEST = "manifest.json"
BLOCK = 65_536


@dataclass(frozen=True)
class Segment:
    """Rows with their vectors; `deleted` ids were removed before these rows were added."""

    vectors: np.ndarray
    ids: pa.Array
    meta: pa.Array
    deleted: list[str]


def new_name() -> str:
    """A name that no file has."""
    return uuid.uuid4().hex[:16]


def write_segment(
    directory: Path,
    fingerprint: str,
    dim: int,
    ids: Sequence[str],
    meta: Sequence[str],
    blocks: Iterable[np.ndarray],
    deleted: Sequence[str] = (),
) -> str:
    """Publish a segment; returns its name. blocks: its vectors in order, so that they need not be in memory at once."""
    name, count = new_name(), len(ids)
    metadata = {"fingerprint": fingerprint, "deleted": json.dumps(list(deleted))}
    size = count * dim * 4
    header = json.dumps(
        {"__metadata__": metadata, "vectors": {"dtype": "F32", "shape": [count, dim], "data_offsets": [0, size]}}
    ).encode()
    header += b" " * (-len(header) % 64)
    with atomic_open(directory / f"{name}.vectors.safetensors") as f:
        f.write(len(header).to_bytes(8, "little") + header)
        written = 0
        for block in blocks:
            f.write(np.ascontiguousarray(block, np.float32).data)
            written += block.nbytes
    assert written == size, (written, size)
    table = pa.table({"id": pa.array(ids, pa.large_string()), "meta": pa.array(meta, pa.large_string())})
    with atomic_open(directory / f"{name}.rows.arrow") as f, pa.ipc.new_file(f, table.schema) as out:
        out.write_table(table, max_chunksize=max(1, count))
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
    columns = [c.combine_chunks() if c.num_chunks != 1 else c.chunk(0) for c in (table["id"], table["meta"])]
    return Segment(vectors, columns[0], columns[1], json.loads(metadata["deleted"]))


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
