"""The actions of `mmtune index` that only read: search, status, journal."""

import argparse
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.cli import index_output
from mmtune.cli.collection_arguments import open_collection
from mmtune.cli.dispatch import Result
from mmtune.errors import DataError

if TYPE_CHECKING:
    from mmtune.index.collection import Collection

MAX_TITLE = 80
"""Most characters of a caption that a search prints."""


def search_arguments(p: argparse.ArgumentParser) -> None:
    what = p.add_mutually_exclusive_group(required=True)
    for name in modalities.names():
        language = modalities.get(name).language
        what.add_argument(f"--{name}", dest=f"query_{name}", metavar="VALUE" if language else "PATH", help=f"search by {name}")
    what.add_argument("--file", metavar="PATH", help="search by a file; its extension determines the modality")
    what.add_argument("--id", metavar="ID", help="search for items similar to the item with this id")
    p.add_argument("-k", type=int, default=10, help="number of results (default %(default)s)")
    p.add_argument("--filter", metavar="EXPR", help="metadata filter, e.g. \"category = 'Apple' and price < 3\"")
    p.add_argument("--version", metavar="VERSION", help="search this version (default: the live one)")
    p.add_argument("--target", action="append", metavar="NAME", help="search only the index of this modality (may be repeated)")
    p.add_argument("--hybrid", action="store_true", help="fuse the results with BM25 over captions and metadata (text queries)")
    p.add_argument(
        "--group-by",
        metavar="COLUMN",
        help='metadata column, or "group"; show only the best item per value, e.g. the best photo of each product',
    )
    p.add_argument(
        "--rerank",
        metavar="SCORER",
        help="re-rank the first results with a cross-encoder: its directory, a registered scorer, package.module:Class, or a MODEL",
    )
    p.add_argument("--rerank-depth", type=int, default=50, metavar="N", help="results to re-rank (default %(default)s)")


def _query(args: argparse.Namespace) -> dict[str, object]:
    """Return the query as {modality: value}, the keyword argument of `Collection.search`; {} for a search by item id."""
    if args.id is not None:
        return {}
    if args.file is None:
        return {m: v for m in modalities.names() if (v := getattr(args, f"query_{m}")) is not None}
    from pathlib import Path

    path, known = Path(args.file), modalities.by_extension()
    name = known.get(path.suffix.lower().lstrip("."))
    if name is None:
        raise DataError(
            f"{path}: no modality has the file extension {path.suffix!r}; known extensions: {', '.join(sorted(known))}"
        )
    try:
        return {name: path.read_bytes()}
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}") from None


def search_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        response = collection.search(
            k=args.k,
            where=args.filter,
            version=args.version,
            target=args.target,
            hybrid=args.hybrid,
            group_by=args.group_by,
            item=args.id,
            rerank=args.rerank,
            rerank_depth=args.rerank_depth,
            **_query(args),
        )
        titles = _titles(collection, response.ids)
    return Result(response.to_dict(), index_output.response(response, titles))


def _titles(collection: "Collection", ids: list[str]) -> dict[str, str]:
    """Return {id: the beginning of the item's caption} for the items that have one."""
    out = {}
    for id, item in collection.catalog.items(ids).items():
        for m in [m for m in item.contents if modalities.get(m).language][:1]:
            caption = " ".join(collection.catalog.read(item, m).decode("utf-8", "replace").split())
            out[id] = caption if len(caption) <= MAX_TITLE else caption[: MAX_TITLE - 3] + "..."
    return out


def no_arguments(p: argparse.ArgumentParser) -> None:
    """Add no arguments: the action has none of its own."""


def status_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        status = collection.status()
    return Result(status.to_dict(), index_output.status(status))


def journal_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        lines = collection.journal()
    return Result({"journal": lines}, index_output.journal(lines))
