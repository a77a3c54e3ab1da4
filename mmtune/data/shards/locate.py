"""Find the tar files of a dataset, which may be given as a directory, a tar file, a brace or glob pattern, or an fsspec URL.

Remote files are downloaded. A directory written by `mmtune pack` is checked against its index.json: all shards must exist and have
the right size, and there must be no other tar files.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mmtune.contracts import JsonObject
from mmtune.data.shards import shard_cache
from mmtune.data.shards.shard_index import KIND, SPLIT_KIND, checked_index, is_kind
from mmtune.errors import DataError, MissingExtra
from mmtune.runtime.files import read_json

NEGATIVES, JUDGMENTS = "negatives.parquet", "judgments.jsonl"
"""Files beside the shards, which `mmtune pack` writes from explicit negatives and scores in the source."""
JOURNAL = ".pack/journal.jsonl"
"""Path of the journal in a directory to which `mmtune pack` writes."""
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")


@dataclass
class ShardFile:
    """A shard of a dataset.

    name: unique name in the dataset, without .tar
    url: where the shard comes from: a URL or a local path
    path: local file
    entry: its entry in index.json; None for a tar file written by another program
    """

    name: str
    url: str
    path: str
    entry: JsonObject | None = None


@dataclass
class ShardListing:
    """All shards of a dataset, in order.

    aliases: column name in the packed source -> "id" or "group", for the columns with these roles (from index.json)
    """

    shards: list[ShardFile] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)


def is_remote(spec: str) -> bool:
    """Whether `spec` is a URL. `file://` URLs count as local."""
    return "://" in spec and not spec.startswith("file://")


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
    specs: list[str | os.PathLike[str]] = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    listing = ShardListing()
    for part in [p for s in specs for p in expand(os.fspath(s))]:
        more = _locate_remote(part) if is_remote(part) else _locate_local(part)
        listing.shards += more.shards
        listing.aliases |= more.aliases
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


def _locate_local(path: str) -> ShardListing:
    path = os.path.abspath(path)
    if os.path.isfile(path):
        folder, name = os.path.split(path)
    elif os.path.isdir(path):
        folder, name = path, ""
    else:
        raise DataError(f"{path}: no such file or directory")
    sizes: dict[str, int | None] = {
        n: os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder) if n.endswith(".tar")
    }
    index = None
    if os.path.exists(os.path.join(folder, "index.json")):
        path_of_index = os.path.join(folder, "index.json")
        index = checked_index(read_json(path_of_index), path_of_index)
    elif os.path.exists(os.path.join(folder, JOURNAL)):
        raise DataError(f"{folder}: `mmtune pack` has not finished here; run the same command again")
    if not name and index is not None and is_kind(index, SPLIT_KIND):
        return _locate_splits(folder, index, _locate_local)
    if name and os.path.splitext(name)[1].lower() in TABLES:
        raise DataError(f"{path}: a table, not shards; pack it first: mmtune pack {path} --out DIR, and name DIR")
    if name:
        names, sizes = [name], sizes | {name: os.path.getsize(path)}
    else:
        names = _shard_names(folder, sizes, index, os.listdir(folder))
    return _check_against_index(folder, names, sizes, index, lambda n: os.path.join(folder, n))


def _locate_splits(folder: str, index: JsonObject, locate_one: Callable[[str], ShardListing]) -> ShardListing:
    """Locate the shards of every split of a directory that was packed with splits; those without a packed row are left out.

    locate_one: locates the shards of one split
    """
    listing = ShardListing()
    for split, counts in index["splits"].items():
        if counts.get("packed", 1):
            more = locate_one(f"{folder}/{split}")
            listing.shards += more.shards
            listing.aliases |= more.aliases
    if not listing.shards:
        raise DataError(f"{folder}: nothing was packed here, every row was rejected; see rejected.jsonl")
    return listing


def _locate_remote(url: str) -> ShardListing:
    import fsspec

    index_url = f"{url.rstrip('/')}/index.json"
    try:
        fs, path = fsspec.core.url_to_fs(url)
        info = fs.info(path)
        is_directory = info["type"] == "directory"
        folder, prefix = (path, url.rstrip("/")) if is_directory else (path.rpartition("/")[0], url.rpartition("/")[0])
        index_url = f"{prefix}/index.json"
        if is_directory:
            infos = {i["name"].rstrip("/").rpartition("/")[2]: i for i in fs.ls(path, detail=True)}
        else:
            infos = {url.rpartition("/")[2]: info}
        has_index = "index.json" in infos if is_directory else fs.exists(f"{folder}/index.json")
        index = checked_index(json.loads(fs.cat_file(f"{folder}/index.json")), index_url) if has_index else None
        if is_directory and index is not None and is_kind(index, SPLIT_KIND):
            return _locate_splits(prefix, index, _locate_remote)
        sizes = {n: i.get("size") for n, i in infos.items() if n.endswith(".tar") or not is_directory}
        names = _shard_names(url, sizes, index, list(infos)) if is_directory else list(sizes)
        listing = _check_against_index(prefix, names, sizes, index, lambda n: "")

        def fetch(shard: ShardFile) -> str:
            name = shard.url.rpartition("/")[2]
            return shard_cache.fetch(fs, shard.url, f"{folder}/{name}", infos[name])

        with ThreadPoolExecutor(4) as pool:
            for shard, local in zip(listing.shards, pool.map(fetch, listing.shards), strict=True):
                shard.path = local
    except ImportError as e:
        raise MissingExtra(f"{url}: {e}") from None
    except FileNotFoundError:
        raise DataError(f"{url}: no such file or directory") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{index_url}: not valid JSON ({e})") from None
    except (OSError, ValueError) as e:
        raise DataError(f"{url}: cannot be read ({e})") from None
    return listing


def _shard_names(folder: str, present: Mapping[str, object], index: JsonObject | None, listing: list[str]) -> list[str]:
    """The names of the shards of a directory, in order.

    folder: the directory, for error messages
    present: keys are the names of the tar files that exist
    index: content of index.json, or None
    listing: names of all files in the directory

    Raises DataError if there are no shards, or if a tar file is not listed in index.json.
    """
    if index is not None and is_kind(index, SPLIT_KIND):
        options = ", ".join(f"{folder}/{s}" for s in index["splits"])
        raise DataError(f"{folder}: packed with splits; name one: {options}")
    if index is not None and is_kind(index, KIND):
        names = [s["name"] for s in index["shards"]]
        if not names:
            raise DataError(f"{folder}: nothing was packed here, every row was rejected; see rejected.jsonl")
        for name in sorted(present):
            if name not in names:
                raise DataError(f"{folder}/{name}: not in index.json; move it elsewhere, or pack again")
        return names
    if not present:
        compressed = [n for n in listing if n.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))]
        if compressed:
            raise DataError(
                f"{folder}/{compressed[0]}: compressed, which does not allow random access; decompress it to a plain .tar first"
            )
        raise DataError(f"{folder}: no *.tar in it; make shards with `mmtune pack SOURCE --out DIR`")
    return sorted(present)


def _check_against_index(
    folder: str,
    names: list[str],
    sizes: Mapping[str, int | None],
    index: JsonObject | None,
    local_path: Callable[[str], str],
) -> ShardListing:
    """List the named shards and check each against its entry in index.json.

    sizes: name -> size in bytes of each file that exists; None if the size is unknown
    local_path: function from the name of a shard to its local path

    Raises DataError if a shard is missing or has another size than in index.json.
    """
    packed = index if index is not None and is_kind(index, KIND) else {}
    entries = {s["name"]: s for s in packed.get("shards", [])}
    shards = []
    for name in names:
        entry, size = entries.get(name), sizes.get(name)
        if name not in sizes:
            raise DataError(f"{folder}/{name}: missing, but index.json lists it; copy it again, or pack again")
        if entry and size is not None and size != entry["bytes"]:
            raise DataError(f"{folder}/{name}: {size} bytes, index.json says {entry['bytes']}; copy it again, or pack again")
        shards.append(ShardFile(name.removesuffix(".tar"), f"{folder}/{name}", local_path(name), entry))
    columns = packed.get("columns", {})
    return ShardListing(shards, {columns[role]: role for role in ("group", "id") if columns.get(role)})
