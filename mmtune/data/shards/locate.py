"""DATA -> files: a directory of tars, a tar, a brace or glob pattern, local or any fsspec URL, becomes local tar files.

A directory that `mmtune pack` wrote is checked against its index.json: every shard there, of the right size, no other.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from mmtune.data.shards import shard_cache
from mmtune.errors import DataError, MissingExtra
from mmtune.runtime.files import read_json

KIND, SPLIT_KIND = "mmtune-shards", "mmtune-splits"
"""The `kind` of an index.json of ours: of a directory of shards, and of one whose subdirectories are."""
JOURNAL = ".pack/journal.jsonl"


@dataclass
class Found:
    """A shard on its way to being opened: `path` is local, `entry` its line in index.json (None for a foreign tar)."""

    name: str
    url: str
    path: str
    entry: dict[str, Any] | None = None


@dataclass
class Place:
    """One directory or tar list: `aliases` maps a source column's name to "id" or "group" (from index.json)."""

    found: list[Found] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)


def remote(spec: str) -> bool:
    """True for a URL (`file://` counts as local)."""
    return "://" in spec and not spec.startswith("file://")


def expand(spec: str) -> list[str]:
    """One DATA string -> paths or URLs, braces and globs expanded. Raises DataError when nothing matches."""
    import braceexpand

    spec = spec.removeprefix("file://")
    if spec.startswith("pipe:"):
        raise DataError(f"{spec}: pipes cannot be read at random; name the files, or an fsspec URL")
    if not remote(spec) and os.path.exists(spec):
        return [spec]
    try:
        parts = list(braceexpand.braceexpand(spec))
    except (ValueError, AttributeError) as e:
        raise DataError(f"{spec}: not a brace pattern ({e}); e.g. shard-{{000000..000003}}.tar") from None
    paths = []
    for part in parts:
        if not remote(part) and glob.has_magic(part) and not os.path.exists(part):
            matches = sorted(glob.glob(part))
            if not matches:
                raise DataError(f"{part}: no file matches")
            paths += matches
        else:
            paths.append(part)
    return paths


def locate(spec: str | os.PathLike[str] | Sequence[str]) -> Place:
    """All shards of DATA in order, fetched where remote, with unique names."""
    specs: list[str | os.PathLike[str]] = [spec] if isinstance(spec, str | os.PathLike) else list(spec)
    place = Place()
    for part in [p for s in specs for p in expand(os.fspath(s))]:
        more = _remote(part) if remote(part) else _local(part)
        place.found += more.found
        place.aliases |= more.aliases
    if not place.found:
        raise DataError("DATA is an empty list; name a directory of shards or a tar")
    urls = Counter(f.url for f in place.found)
    if (twice := urls.most_common(1)[0])[1] > 1:
        raise DataError(f"{twice[0]}: named twice")
    for depth in (2, 3, 100):  # two directories may hold a shard of the same name: add as much of the path as it takes
        names = Counter(f.name for f in place.found)
        for f in place.found:
            if names[f.name] > 1:
                f.name = "/".join(f.url.removesuffix(".tar").split("/")[-depth:])
    return place


def _local(path: str) -> Place:
    path = os.path.abspath(path)
    if os.path.isfile(path):
        folder, names = os.path.split(path)
    elif os.path.isdir(path):
        folder, names = path, ""
    else:
        raise DataError(f"{path}: no such file or directory")
    present = {n: os.path.getsize(os.path.join(folder, n)) for n in os.listdir(folder) if n.endswith(".tar")}
    index = None
    if os.path.exists(os.path.join(folder, "index.json")):
        index = read_json(os.path.join(folder, "index.json"))
    elif os.path.exists(os.path.join(folder, JOURNAL)):
        raise DataError(f"{folder}: `mmtune pack` has not finished here; run the same command again")
    wanted = [names] if names else _wanted(folder, present, index, os.listdir(folder))
    return _checked(
        folder, wanted, present | ({names: os.path.getsize(path)} if names else {}), index, lambda n: os.path.join(folder, n)
    )


def _remote(url: str) -> Place:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
        info = fs.info(path)
        folder = path if info["type"] == "directory" else path.rpartition("/")[0]
        prefix = url.rstrip("/") if info["type"] == "directory" else url.rpartition("/")[0]
        if info["type"] == "directory":
            infos = {i["name"].rstrip("/").rpartition("/")[2]: i for i in fs.ls(path, detail=True)}
        else:
            infos = {url.rpartition("/")[2]: info}
        has_index = "index.json" in infos if info["type"] == "directory" else fs.exists(f"{folder}/index.json")
        index = json.loads(fs.cat_file(f"{folder}/index.json")) if has_index else None
        present = {n: i.get("size") for n, i in infos.items() if n.endswith(".tar") or info["type"] != "directory"}
        wanted = _wanted(url, present, index, list(infos)) if info["type"] == "directory" else list(present)
        place = _checked(prefix, wanted, present, index, lambda n: "")
        with ThreadPoolExecutor(4) as pool:
            paths = pool.map(
                lambda f: shard_cache.fetch(fs, f.url, f"{folder}/{f.url.rpartition('/')[2]}", infos[f.url.rpartition("/")[2]]),
                place.found,
            )
            for shard, local in zip(place.found, paths, strict=True):
                shard.path = local
    except ImportError as e:
        raise MissingExtra(f"{url}: {e}") from None
    except FileNotFoundError:
        raise DataError(f"{url}: no such file or directory") from None
    except json.JSONDecodeError as e:
        raise DataError(f"{prefix}/index.json: not valid JSON ({e})") from None
    except (OSError, ValueError) as e:
        raise DataError(f"{url}: cannot be read ({e})") from None
    return place


def _ours(index: Any, kind: str) -> bool:
    return isinstance(index, dict) and index.get("kind") == kind


def _wanted(folder: str, present: dict[str, Any], index: Any, listing: list[str]) -> list[str]:
    """The shards of a directory, in order. Raises DataError when there are none, or other ones than its index says."""
    if _ours(index, SPLIT_KIND):
        options = ", ".join(f"{folder}/{s}" for s in index["splits"])
        raise DataError(f"{folder}: packed with splits; name one: {options}")
    if _ours(index, KIND):
        names = [s["name"] for s in index["shards"]]
        if not names:
            raise DataError(f"{folder}: nothing was packed here, every row was rejected; see rejected.jsonl")
        for name in sorted(present):
            if name not in names:
                raise DataError(f"{folder}/{name}: not in index.json; move it elsewhere, or pack again")
        return names
    if not present:
        packed = [n for n in listing if n.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"))]
        if packed:
            raise DataError(
                f"{folder}/{packed[0]}: compressed; rows are read at random, so decompress it to a plain .tar first"
            )
        raise DataError(f"{folder}: no *.tar in it; make shards with `mmtune pack SOURCE --out DIR`")
    return sorted(present)


def _checked(folder: str, wanted: list[str], present: dict[str, Any], index: Any, path: Any) -> Place:
    """`wanted` as found shards, each compared with its line in the index."""
    ours = _ours(index, KIND)
    entries = {s["name"]: s for s in index["shards"]} if ours else {}
    found = []
    for name in wanted:
        entry = entries.get(name)
        if name not in present:
            raise DataError(f"{folder}/{name}: missing, but index.json lists it; copy it again, or pack again")
        if entry and present[name] is not None and present[name] != entry["bytes"]:
            raise DataError(
                f"{folder}/{name}: {present[name]} bytes, index.json says {entry['bytes']}; copy it again, or pack again"
            )
        found.append(Found(name.removesuffix(".tar"), f"{folder}/{name}", path(name), entry))
    columns = index.get("columns", {}) if ours else {}
    return Place(found, {columns[k]: k for k in ("group", "id") if columns.get(k)})
