"""List and fetch remote shards. Requests for many shards run in parallel threads."""

import contextlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mmtune.contracts import JsonObject
from mmtune.data.remote.file_systems import file_system
from mmtune.data.remote.remote_files import (
    cache_identity,
    file_info,
    is_stamped,
    one_line_errors,
    read_small,
    stamp_of,
)
from mmtune.data.remote.request_failures import public_url
from mmtune.data.remote.retry import retry
from mmtune.data.shards import shard_cache
from mmtune.data.shards.shard_index import SPLIT_KIND, checked_index, is_kind
from mmtune.data.shards.shard_listing import (
    ShardFile,
    ShardListing,
    check_against_index,
    packed_splits,
    shard_names,
)
from mmtune.data.shards.shard_table import table_name
from mmtune.errors import DataError
from mmtune.runtime.files import write_bytes

A = TypeVar("A")
B = TypeVar("B")

PARALLEL_REQUESTS = 32
"""Number of requests to a server at the same time."""
SUFFIXES = (".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz")
"""A URL that ends with one of these is a shard; others are first tried as a directory."""
_RUN = uuid.uuid4().hex
"""Stamp of files of servers that give neither stamp nor size: such files are fetched again in every process."""


def in_parallel(function: Callable[[A], B], items: Iterable[A]) -> list[B]:
    """Apply `function` to all items in parallel threads, and return the results in order."""
    with ThreadPoolExecutor(PARALLEL_REQUESTS, thread_name_prefix="mmtune-fetch") as pool:
        return list(pool.map(function, items))


def locate_remote(urls: list[str], given: Mapping[str, str], suffixes: tuple[str, ...] = (".tar",)) -> list[ShardListing]:
    """List the shards behind each URL, a directory or a shard. No shard is fetched.

    given: URL -> what the user has named, such as a brace pattern; it is named where the server is at fault
    suffixes: ends of the names of the files in a directory that are shards

    Raises DataError if a directory does not exist, contains no shards, or does not agree with its index.json, and ServerUnreachable if
    there is no connection to the server.
    """
    for url in {url.partition("://")[0]: url for url in urls}.values():
        file_system(url)  # raises MissingExtra, which names this URL and not that of an index.json
    folder_of = {url: _split(url)[0] for url in urls if public_url(url).lower().endswith(SUFFIXES)}
    folders = {folder: given[url] for url, folder in reversed(folder_of.items())}  # each with the first of its URLs
    indexes = dict(zip(folders, in_parallel(lambda f: _read_index(f, folders[f]), folders), strict=True))
    return [
        _locate_shard(url, indexes[folder_of[url]]) if url in folder_of else _locate_directory(url, suffixes, given[url])
        for url in urls
    ]


def _split(url: str) -> tuple[str, str, str]:
    """Split a URL into (its directory, its file name, its query string with the question mark)."""
    path, mark, query = url.partition("?") if url.startswith("http") else (url, "", "")
    folder, _, name = path.rstrip("/").rpartition("/")
    return folder, name, mark + query


def _read_index(folder: str, given: str) -> JsonObject | None:
    data = read_small(f"{folder}/index.json", given, refresh=True)
    try:
        return checked_index(json.loads(data), f"{public_url(folder)}/index.json") if data is not None else None
    except ValueError as e:
        raise DataError(f"{public_url(folder)}/index.json: not valid JSON ({e})") from None


def _locate_shard(url: str, index: JsonObject | None) -> ShardListing:
    folder, name, query = _split(url)
    listing = check_against_index(public_url(folder), [name], {name: None}, index, lambda n: "")
    listing.shards[0].remote = url
    return listing


def _locate_directory(url: str, suffixes: tuple[str, ...], given: str) -> ShardListing:
    folder = url.rstrip("/")
    index = _read_index(folder, given)
    if index is not None and is_kind(index, SPLIT_KIND):
        listing = ShardListing()
        for split in packed_splits(public_url(folder), index):
            listing.add(_locate_directory(f"{folder}/{split}", suffixes, given))
        return listing
    infos = _list_directory(url, index)
    if infos is None:  # a single file with an unusual name
        return _locate_shard(url, _read_index(_split(url)[0], given))
    sizes = {n: i.get("size") for n, i in infos.items() if n.endswith(suffixes)}
    names = shard_names(public_url(folder), sizes, index, list(infos))
    listing = check_against_index(public_url(folder), names, sizes, index, lambda n: "")
    for name, shard in zip(names, listing.shards, strict=True):
        shard.remote, shard.info = f"{folder}/{name}", infos[name]
    return listing


def _list_directory(url: str, index: JsonObject | None) -> dict[str, JsonObject] | None:
    """Return {file name: info} of the files of a remote directory, or None if the URL is a file.

    HTTP has no listing of directories: the files are those in index.json, or the links on the page that the server shows.
    """
    fs, path = file_system(url)
    if path.startswith("http") and index is not None and "shards" in index:
        return {s["name"]: {"size": s["bytes"]} for s in index["shards"]}
    info = file_info(url)
    if info["type"] != "directory" and "html" not in str(info.get("mimetype")):
        return None
    with one_line_errors(url):
        found = retry(lambda: fs.ls(path, detail=True), url)
    names = {str(i["name"]).rstrip("/").rpartition("/")[2]: dict(i) for i in found}
    shown = public_url(str(info.get("url", url)))
    if shown.rstrip("/") != public_url(url).rstrip("/") and not any(n.endswith(SUFFIXES) for n in names):
        raise DataError(
            f"{public_url(url)}: the server shows the page {shown} instead, which names no shard; "
            "if it asks for a login, use signed URLs of the shards, or a URL with credentials (https://USER:PASSWORD@HOST/...)"
        )
    return names


def fetch_shards(shards: list[ShardFile]) -> None:
    """Fetch all remote shards into the cache, in parallel, and set their `path`. Shards that are in the cache are not fetched again.

    Raises DataError if a shard does not exist or cannot be read.
    """

    def fetch(shard: ShardFile) -> None:
        with missing_shard(shard):
            shard.path = _fetch(shard)

    in_parallel(fetch, [s for s in shards if s.remote])


@contextlib.contextmanager
def missing_shard(shard: ShardFile) -> Iterator[None]:
    """Context manager that says of a shard that the server does not have that index.json lists it."""
    try:
        yield
    except DataError as e:
        if shard.entry and "no such file" in str(e):
            raise DataError(f"{shard.url}: missing, but index.json lists it; copy it again, or pack again") from None
        raise


def _fetch(shard: ShardFile) -> str:
    stamp, size = shard_stamp(shard)
    return shard_cache.fetch(shard.remote, cache_identity(shard.remote), stamp, size)


def local_copy(shard: ShardFile) -> str:
    """The path at which `fetch_shards` stores a remote shard."""
    return str(shard_cache.copy_path(shard.remote, cache_identity(shard.remote), shard_stamp(shard)[0]))


def fetch_table(shard: ShardFile) -> None:
    """Fetch the table file of a remote shard of a pack into the cache, and check that the shard itself exists.

    A table that does not exist on the server is left out. Raises DataError if the shard does not exist, or has another size than in
    index.json.
    """
    assert shard.entry is not None
    if not shard.info or "name" not in shard.info:  # index.json gave the name, not a listing of the server
        with missing_shard(shard):
            size = file_info(shard.remote).get("size")
        if size is not None and size != shard.entry["bytes"]:
            raise DataError(f"{shard.url}: {size} bytes, index.json says {shard.entry['bytes']}; copy it again, or pack again")
    local = shard_cache.table_copy(shard.entry["table_sha256"])
    if not local.exists():
        folder, name, query = _split(shard.remote)
        if (data := read_small(f"{folder}/{table_name(name)}{query}")) is not None:
            with contextlib.suppress(OSError):  # continue without the cache if it cannot be written
                write_bytes(local, data)


def shard_stamp(shard: ShardFile) -> tuple[str, int | None]:
    """Return (stamp, size) of a remote shard: a string that changes when the shard changes, and its size in bytes, if known."""
    listed = shard.info if shard.info and is_stamped(shard.info) else None
    if shard.entry and not listed:
        return f"sha256:{shard.entry['sha256']}", shard.entry["bytes"]
    info = listed or file_info(shard.remote)
    size: int | None = info.get("size")
    if shard.entry and size is not None and size != shard.entry["bytes"]:
        raise DataError(f"{shard.url}: {size} bytes, index.json says {shard.entry['bytes']}; copy it again, or pack again")
    return (stamp_of(info) if is_stamped(info) or size is not None else _RUN), size
