"""The action `mmtune index adopt`: vectors that other software stored become the first version of a collection."""

import argparse

from mmtune.cli.collection_arguments import open_collection, open_rows
from mmtune.cli.dispatch import Result, add_quiet


def adopt_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", required=True, metavar="MODEL", help="the model that made the vectors")
    p.add_argument(
        "--from",
        required=True,
        dest="source",
        metavar="KIND",
        help="kind of database: pgvector, qdrant, or package.module:Class",
    )
    p.add_argument(
        "--url",
        required=True,
        help="URL of the database, or env:NAME to read it from environment variable NAME; it is only read",
    )
    p.add_argument("--table", required=True, metavar="NAME", help="table (also SCHEMA.TABLE) or Qdrant collection")
    p.add_argument("--modality", required=True, metavar="NAME", help="modality of the items, e.g. image")
    p.add_argument("--vector", metavar="COLUMN", help="column of the vectors, or name of the vectors, if there are several")
    p.add_argument("--id", metavar="COLUMN", help="column of the ids (default: the primary key, or the ids of the points)")
    p.add_argument("--data", metavar="DATA", help="packed rows with the items' contents; their ids are those of the table")
    p.add_argument(
        "--content",
        metavar="COLUMN",
        help="instead of --data: column with the contents (a text, or the path of a file); the other columns become metadata",
    )
    p.add_argument("--dim", type=int, metavar="N", help="the vectors are the model's truncated to N dimensions (Matryoshka)")
    p.add_argument("--store", metavar="NAME", help="vector store of the version (default: the same database)")
    p.add_argument("--store-url", metavar="URL", help="URL of that store's database")
    p.add_argument("--index", default="auto", metavar="KIND", help="index type: auto (default), flat (exact), hnsw, ivfpq")
    p.add_argument("--batch-size", type=int, default=64, help="items per forward pass (default %(default)s)")
    add_quiet(p)


def adopt_action(args: argparse.Namespace) -> Result:
    from mmtune.index.adopt.adopt import adopt
    from mmtune.index.release.build import IndexOptions

    with open_collection(args, create=True) as collection:
        done = adopt(
            collection,
            args.model,
            source=args.source,
            url=args.url,
            table=args.table,
            modality=args.modality,
            vector=args.vector,
            id=args.id,
            data=open_rows(args.data),
            content=args.content,
            dim=args.dim,
            options=IndexOptions(args.store, args.store_url, args.index),
            batch_size=args.batch_size,
            quiet=args.quiet,
        )
    lines = [
        f"{done.version}: {done.adopted:,} vectors adopted, {done.embedded:,} items without a vector embedded; {done.checked} vectors "
        "were computed again and are the same",
        *([f"{done.unknown:,} ids of the table are of no item"] if done.unknown else []),
        *(f"{count:,} rows left out: {reason}" for reason, count in done.skipped.items()),
        f"next: mmtune index promote {args.collection} {done.version}",
    ]
    return Result(done.to_dict(), "\n".join(lines))
