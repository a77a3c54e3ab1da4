"""Find the tar files of a dataset, which may be given as a directory, a tar file, a brace or glob pattern, or an fsspec URL.

Remote files are downloaded. A directory written by `mmtune pack` is checked against its index.json: all shards must exist and have
the right size, and there must be no other tar files.
"""

import glob
import os
from collections import Counter
from collections.abc import Sequence

from mmtune.contracts import JsonObject
from mmtune.data.remote.remote_files import is_remote
from mmtune.data.shards.remote_listing import fetch_shards, locate_remote
from mmtune.data.shards.shard_index import SPLIT_KIND, checked_index, is_kind
from mmtune.data.shards.shard_listing import ShardListing, check_against_index, packed_splits, shard_names
from mmtune.errors import DataError
from mmtune.runtime.files import read_json

NEGATIVES, JUDGMENTS = "negatives.parquet", "judgments.jsonl"
"""Files beside the shards, which `mmtune pack` writes from explicit negatives and scores in the source."""
JOURNAL = ".pack/journal.jsonl"
"""Path of the journal in a directory to which `mmtune pack` writes."""
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
"""File extensions of tables, which are sources of `mmtune pack` and not shards."""


def expand(spec: str) -> list[str]:
    """Expand brace and glob patterns to paths or URLs. Raises DataError if no file matches or the pattern is invalid."""
    import braceexpand

    spec = spec.removeprefix("file://")
    if spec.startswith("pipe:"):
        raise DataError(f"{spec}: pipes do not allow random access; name the files, or an fsspec URL")
    if not is_remote(spec) and os.path.exists(spec):
        return [spec]
    try:
        parts = list(braceexpand.braceexpand(spec))
    except (ValueError, AttributeError) as e:
        raise DataError(f"{spec}: not a brace pattern ({e}); e.g. shard-{{000000..000003}}.tar") from None
    paths = []
    for part in parts:
        if not is_remote(part) and glob.has_magic(part) and not os.path.exists(part):
            matches = sorted(glob.glob(part))
            if not matches:
                raise DataError(f"{part}: no file matches")
            paths += matches
        else:
            paths.append(part)
    return paths


def locate(spec: str | os.PathLike[str] | Sequence[str]) -> ShardListing:
    """Find all shards of a dataset, in order, and give them unique names. Remote shards are downloaded into the cache.

    spec: one path, pattern or URL, or a list of them

    Raises DataError if a file does not exist, does not agree with index.json, or is named twice.
    """
    listing = list_shards(spec)
    fetch_shards(listing.shards)
    return listing


def list_shards(spec: str | os.PathLike[str] | Sequence[str], suffixes: tuple[str, ...] = (".tar",)) -> ShardListing:
    """Like `locate`, but remote shards are only listed, not downloaded.

    suffixes: ends of the names of the files in a directory that are shards
    """
    specs: list[str | os.PathLike[str]] = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    listing = ShardListing()
    expanded = [(p, os.fspath(s)) for s in specs for p in expand(os.fspath(s))]
    parts = [p for p, _ in expanded]
    remote = iter(locate_remote([p for p in parts if is_remote(p)], dict(expanded), suffixes))
    indexes: dict[str, JsonObject | None] = {}
    for part in parts:
        listing.add(next(remote) if is_remote(part) else _locate_local(part, indexes, suffixes))
    if not listing.shards:
        raise DataError("DATA is an empty list; name a directory of shards or a tar")
    urls = Counter(s.url for s in listing.shards)
    if (repeated := urls.most_common(1)[0])[1] > 1:
        raise DataError(f"{repeated[0]}: named twice")
    # shards of different directories may have the same name: add parent directories to the name until the names are unique
    for depth in (2, 3, 100):
        names = Counter(s.name for s in listing.shards)
        for s in listing.shards:
            if names[s.name] > 1:
                s.name = "/".join(s.url.removesuffix(".tar").split("/")[-depth:])
    return listing


def _locate_local(path: str, indexes: dict[str, JsonObject | None], suffixes: tuple[str, ...]) -> ShardListing:
    """Locate the shards of a local directory or tar file. `indexes` keeps the index.json of directories, so that it is read once."""
    path = os.path.abspath(path)
    if os.path.isfile(path):
        folder, name = os.path.split(path)
    elif os.path.isdir(path):
        folder, name = path, ""
    else:
        raise DataError(f"{path}: no such file or directory")
    if folder not in indexes:
        indexes[folder] = _read_index(folder)
    index = indexes[folder]
    if not name and index is not None and is_kind(index, SPLIT_KIND):
        return _locate_splits(folder, index, suffixes)
    if name and os.path.splitext(name)[1].lower() in TABLES:
        raise DataError(f"{path}: a table, not shards; pack it first: mmtune pack {path} --out DIR, and name DIR")
    sizes: dict[str, int | None]
    if name:
        names, sizes = [name], {name: os.path.getsize(path)}
    else:
        files = os.listdir(folder)
        sizes = {n: os.path.getsize(os.path.join(folder, n)) for n in files if n.endswith(suffixes)}
        names = shard_names(folder, sizes, index, files)
    return check_against_index(folder, names, sizes, index, lambda n: os.path.join(folder, n))


def _read_index(folder: str) -> JsonObject | None:
    path = os.path.join(folder, "index.json")
    if os.path.exists(path):
        return checked_index(read_json(path), path)
    if os.path.exists(os.path.join(folder, JOURNAL)):
        raise DataError(f"{folder}: `mmtune pack` has not finished here; run the same command again")
    return None


def _locate_splits(folder: str, index: JsonObject, suffixes: tuple[str, ...]) -> ShardListing:
    """Locate the shards of every split of a directory that was packed with splits; those without a packed row are left out."""
    listing = ShardListing()
    for split in packed_splits(folder, index):
        listing.add(_locate_local(os.path.join(folder, split), {}, suffixes))
    return listing
