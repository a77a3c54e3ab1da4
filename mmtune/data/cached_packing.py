"""Pack a source into the cache once: a second call with the same content finds the packed shards."""

import hashlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from mmtune.data.shards import shard_cache
from mmtune.errors import DataError, DataWarning
from mmtune.runtime.files import read_json, read_jsonl
from mmtune.runtime.work_lock import file_lock


def pack_once(
    name: str, folder: str, identity: Sequence[object], pack_into: Callable[[Path], object], max_rejected: float
) -> Path:
    """Pack a source, unless that was done before with the same identity, and return the directory with the shards.

    Processes that ask for the same data wait for the one that packs them.

    name: what messages call the source
    folder: directory of the cache, below which a directory is named by the identity
    identity: JSON values that stand for the content of the source and all that its shards depend on besides the version of `pack`
    pack_into: packs the source into the directory that it is given, with rows rejected however many they are
    max_rejected: largest fraction of rows that may be unusable

    Issues a DataWarning if rows are rejected. Raises DataError if more than `max_rejected` of them are.
    """
    from mmtune.data.pack.pack import ROW_RULES
    from mmtune.data.shards.shard_index import FORMAT

    key = json.dumps([FORMAT, ROW_RULES, *identity])
    out = shard_cache.root() / folder / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    out.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(f"{out}.lock"):
        if not (out / "index.json").exists():
            pack_into(out)
    index = read_json(out / "index.json")
    if index["rejected"]:
        rows = index["packed"] + index["rejected"]
        first = read_jsonl(out / "rejected.jsonl")[0]
        line = f"{name}: {index['rejected']} of {rows} rows rejected (row {first['row']}: {first['reason']})"
        if index["rejected"] > max_rejected * rows:
            raise DataError(f"{line}; repair them or leave them out")
        warnings.warn(f"{line}, listed in {out / 'rejected.jsonl'}", DataWarning, stacklevel=4)
    return out
