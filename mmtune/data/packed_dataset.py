"""Open a Hugging Face dataset on disk as DATA: it is packed into the cache when it is opened for the first time."""

import hashlib
import json
import os
import sys
import warnings
from pathlib import Path

from mmtune.data.pack.pack import ROW_RULES, SCHEMA, pack
from mmtune.data.shards import shard_cache, tar_index
from mmtune.data.sources.row_source import is_dataset_folder, open_source
from mmtune.errors import DataWarning
from mmtune.runtime.files import read_json
from mmtune.runtime.work_lock import file_lock

MAX_WORKERS = 8


def shards_of(spec: str) -> str:
    """The directory of the packed shards if `spec` is the folder of a Hugging Face dataset, else `spec` itself.

    The dataset is packed as `mmtune pack` does it, with its splits as splits, into the cache ($MMTUNE_CACHE). It is packed again
    after a file has changed. Issues a DataWarning with the number of rejected rows. Raises DataError if it cannot be packed.
    """
    folder = Path(spec)
    if "://" in spec or not folder.is_dir() or (folder / "index.json").exists() or any(folder.glob("*.tar")):
        return spec
    if not is_dataset_folder(folder):
        return spec
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    stamps = [[p.relative_to(folder).as_posix(), (s := p.stat()).st_size, s.st_mtime_ns] for p in files]
    identity = json.dumps([str(folder.resolve()), stamps, SCHEMA, ROW_RULES, tar_index.signature()])
    key = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    out = shard_cache.root() / "packed" / key
    out.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(f"{out}.lock"):
        if not (out / "index.json").exists():
            print(f"{spec}: a Hugging Face dataset; packing it into {out}", file=sys.stderr)
            split = "split" if open_source(folder).splits else None
            workers = min(MAX_WORKERS, os.cpu_count() or 1)
            pack(folder, out, split=split, workers=workers, max_rejected=1.0)
    index = read_json(out / "index.json")
    if index["rejected"]:
        rows = index["packed"] + index["rejected"]
        warnings.warn(
            f"{spec}: {index['rejected']} of {rows} rows rejected, listed in {out / 'rejected.jsonl'}",
            DataWarning,
            stacklevel=3,
        )
    return str(out)
