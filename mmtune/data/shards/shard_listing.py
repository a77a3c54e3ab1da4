"""The listing of a dataset's shards, and its check against the index.json that `mmtune pack` writes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from mmtune.contracts import JsonObject
from mmtune.data.shards.shard_index import KIND, is_kind
from mmtune.errors import DataError


@dataclass
class ShardFile:
    """A shard of a dataset.

    name: unique name in the dataset, without .tar
    url: where the shard comes from: a local path, or a URL without credentials
    path: local file; "" for a remote shard that was not fetched
    entry: its entry in index.json; None for a tar file written by another program
    remote: for a remote shard, the URL to fetch it from, which may contain credentials or a signature
    info: what the server's listing says about a remote shard, if there was a listing
    """

    name: str
    url: str
    path: str
    entry: JsonObject | None = None
    remote: str = ""
    info: JsonObject | None = None


@dataclass
class ShardListing:
    """All shards of a dataset, in order.

    aliases: column name in the packed source -> "id" or "group", for the columns with these roles (from index.json)
    """

    shards: list[ShardFile] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)

    def add(self, other: "ShardListing") -> None:
        """Append the shards of another listing."""
        self.shards += other.shards
        self.aliases |= other.aliases


def packed_splits(folder: str, index: JsonObject) -> list[str]:
    """The splits with at least one packed row, from the index.json of a directory that was packed with splits.

    Raises DataError if there is none.
    """
    splits = [split for split, counts in index["splits"].items() if counts.get("packed", 1)]
    if not splits:
        raise DataError(f"{folder}: nothing was packed here, every row was rejected; see rejected.jsonl")
    return splits


def shard_names(folder: str, present: Mapping[str, object], index: JsonObject | None, listing: list[str]) -> list[str]:
    """The names of the shards of a directory, in order.

    folder: the directory, for error messages
    present: keys are the names of the tar files that exist
    index: content of index.json, or None
    listing: names of all files in the directory

    Raises DataError if there are no shards, or if a tar file is not listed in index.json.
    """
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


def check_against_index(
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
