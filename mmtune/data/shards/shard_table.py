"""The table file that `mmtune pack` writes beside each shard (NAME.arrow beside NAME.tar), so that opening data does not read the tar.

It is the table of `tar_index.scan` as a compressed Arrow IPC file. index.json has its size and SHA-256. Equal shards give equal bytes.
"""

import hashlib
import json
from pathlib import Path

import pyarrow as pa

from mmtune.contracts import JsonObject
from mmtune.data.shards import tar_index
from mmtune.runtime.files import atomic_open

SUFFIX = ".arrow"
SIGNATURE = b"signature"
"""Key of the schema metadata with `tar_index.signature()`: a table that other rules have made is not used."""


def table_name(shard: str) -> str:
    """The file name of the table of a shard, from the file name of the shard."""
    return shard.removesuffix(".tar") + SUFFIX


def encode_table(table: pa.Table) -> bytes:
    """Serialise the table of a shard."""
    metadata = {**(table.schema.metadata or {}), SIGNATURE: json.dumps(tar_index.signature()).encode()}
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata), options=options) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def decode_table(data: bytes, entry: JsonObject) -> pa.Table | None:
    """Read the table of a shard. None if it is damaged, of another shard, or made by other rules than those of this process.

    data: content of the table file
    entry: entry of the shard in index.json
    """
    if hashlib.sha256(data).hexdigest() != entry["table_sha256"]:
        return None
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    written = (table.schema.metadata or {}).get(SIGNATURE)
    return table if written == json.dumps(tar_index.signature()).encode() and len(table) == entry["rows"] else None


def write_table(shard: Path) -> tuple[int, str]:
    """Scan a shard and write its table beside it. Returns the size and the SHA-256 of the table file."""
    data = encode_table(tar_index.scan(str(shard)))
    with atomic_open(shard.with_name(table_name(shard.name))) as f:
        f.write(data)
    return len(data), hashlib.sha256(data).hexdigest()
