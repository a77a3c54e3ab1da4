"""Open a Hugging Face dataset on disk as DATA: it is packed into the cache when it is opened for the first time."""

import os
import sys
from pathlib import Path

from mmtune.data.cached_packing import pack_once
from mmtune.data.pack.pack import pack
from mmtune.data.shards import tar_index
from mmtune.data.sources.row_source import is_dataset_folder, open_source

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

    def pack_into(out: Path) -> None:
        print(f"{spec}: a Hugging Face dataset; packing it into {out}", file=sys.stderr)
        split = "split" if open_source(folder).splits else None
        pack(folder, out, split=split, workers=min(MAX_WORKERS, os.cpu_count() or 1), max_rejected=1.0)

    identity = [str(folder.resolve()), stamps, tar_index.signature()]
    return str(pack_once(spec, "packed", identity, pack_into, max_rejected=1.0))
