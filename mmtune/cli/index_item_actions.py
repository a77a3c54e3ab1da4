"""The actions of `mmtune index` that change items and versions: build, embed, upsert, delete, drop; and plan."""

import argparse

from mmtune.cli import index_output
from mmtune.cli.collection_arguments import add_skip_bad, open_collection, open_rows
from mmtune.cli.dispatch import Result, add_quiet
from mmtune.errors import DataError


def _embedding_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--model", required=True, metavar="MODEL", help="the model: an artifact, hf:DIR, open_clip:DIR, tiny:NAME, ..."
    )
    p.add_argument(
        "--only", action="append", metavar="NAME", help="index only this modality (may be repeated; default: all but captions)"
    )
    p.add_argument("--dim", type=int, metavar="N", help="truncate the embeddings to N dimensions (Matryoshka)")
    p.add_argument("--batch-size", type=int, default=64, help="items per forward pass (default %(default)s)")


def build_arguments(p: argparse.ArgumentParser) -> None:
    _embedding_arguments(p)
    p.add_argument(
        "--data", metavar="DATA", help="packed rows to upsert first (default: embed the items that the collection has)"
    )
    p.add_argument("--prune", action="store_true", help="also delete the items that are not in DATA")
    p.add_argument(
        "--store",
        metavar="NAME",
        help="vector store: faiss (default), lancedb, pgvector, qdrant, qdrant-edge, or package.module:Class",
    )
    p.add_argument("--url", help="URL of the store's database, or env:NAME to read it from environment variable NAME")
    p.add_argument("--index", default="auto", metavar="KIND", help="index type: auto (default), flat (exact), hnsw, ivfpq")
    p.add_argument(
        "--search-dim", type=int, metavar="N", help="search with the first N dimensions, re-rank with all (faiss only)"
    )
    p.add_argument(
        "--memory-mb", type=int, metavar="N", help="memory limit for building an ivfpq index, in MB (default 1024; faiss only)"
    )
    add_skip_bad(p)
    add_quiet(p)


def build_action(args: argparse.Namespace) -> Result:
    from mmtune.runtime.distributed import launched_world_size

    if launched_world_size() > 1:
        raise DataError(
            "`mmtune index build` must run in one process; to embed with several, run torchrun ... -m mmtune index embed "
            "COLLECTION ... first"
        )
    with open_collection(args, create=True) as collection:
        result = collection.build(
            args.model,
            open_rows(args.data, args.skip_bad),
            store=args.store,
            url=args.url,
            index=args.index,
            modalities=args.only,
            dim=args.dim,
            search_dim=args.search_dim,
            memory_mb=args.memory_mb,
            prune=args.prune,
            batch_size=args.batch_size,
            quiet=args.quiet,
        )
    return Result(result.to_dict(), index_output.built(result))


def embed_arguments(p: argparse.ArgumentParser) -> None:
    from mmtune.cli.embed_verb import engine

    _embedding_arguments(p)
    p.add_argument("--data", required=True, metavar="DATA", help="packed rows to embed; use the same DATA in the build")
    engine(p)
    add_quiet(p)


def embed_action(args: argparse.Namespace) -> Result:
    from pathlib import Path

    from mmtune.index.shared_embedding import embed_into_collection
    from mmtune.runtime.distributed import silence_other_ranks

    silence_other_ranks()
    arguments = str(Path(args.collection).absolute()), args.model, args.data, args.only, args.batch_size
    if args.engine == "ray":
        from mmtune.embedding.ray_workers import on_ray

        on_ray(embed_into_collection, (*arguments, True), args.workers, dim=args.dim)
    result = embed_into_collection(*arguments, args.quiet, dim=args.dim)
    return Result(result.to_dict(), index_output.embedded(result, args.collection))


def plan_arguments(p: argparse.ArgumentParser) -> None:
    _embedding_arguments(p)
    p.add_argument("--data", metavar="DATA", help="packed rows to sample from (default: the items of the collection)")
    p.add_argument(
        "--items",
        type=int,
        metavar="N",
        help="estimate for N new items (default: for those of DATA or the collection; embedded ones cost no time)",
    )
    p.add_argument("--price-per-hour", type=float, metavar="X", help="price of this machine per hour")
    p.add_argument("--sample", type=int, default=64, metavar="N", help="rows per modality to measure on (default %(default)s)")


def plan_action(args: argparse.Namespace) -> Result:
    from mmtune.index.release.cost import estimate_data_cost

    amounts = args.items, args.price_per_hour
    options = {"dim": args.dim, "sample": args.sample, "batch_size": args.batch_size}
    if args.collection:
        with open_collection(args) as collection:
            cost = collection.plan(args.model, open_rows(args.data), *amounts, modalities=args.only, **options)
    elif args.data:
        cost = estimate_data_cost(args.model, args.data, *amounts, wanted=args.only, **options)
    else:
        raise DataError("plan: nothing to estimate for; name a COLLECTION or --data DATA")
    return Result(cost.to_dict(), index_output.plan(cost))


def upsert_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", required=True, metavar="DATA", help="packed rows; existing items with the same id are replaced")
    add_skip_bad(p)
    add_quiet(p)


def upsert_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        result = collection.upsert(open_rows(args.data, args.skip_bad), quiet=args.quiet)
    return Result(result.to_dict(), index_output.upserted(result), 1 if result.behind else 0)


def delete_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("ids", nargs="+", metavar="ID", help="id of an item to delete")


def delete_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        result = collection.delete(args.ids)
    return Result(result.to_dict(), f"{result.deleted} deleted, {result.unknown} unknown", 1 if result.behind else 0)


def drop_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("version", metavar="VERSION", help="the version to delete")
    p.add_argument("--why", metavar="REASON", help="reason to record in the audit log")


def drop_action(args: argparse.Namespace) -> Result:
    with open_collection(args) as collection:
        result = collection.drop(args.version, args.why)
    return Result(result.to_dict(), f"{args.version} deleted")
