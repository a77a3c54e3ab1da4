"""Build, search and update a collection: items, versions with a pinned model each, and a pointer to the live version.

  mmtune index embed    COLLECTION --model MODEL --data DATA     share the embedding among processes or machines, optional
  mmtune index build    COLLECTION --model MODEL --data DATA     embed into a new version; the live version keeps serving
  mmtune index promote  COLLECTION VERSION --queries DATA        make it live, if it passes the gate (exit 1: it does not)
  mmtune index rollback COLLECTION                               make the previous version live again, at once
`mmtune index ACTION --help` explains an action.
"""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from mmtune import modalities
from mmtune.cli import index_output as say
from mmtune.cli.dispatch import Result
from mmtune.errors import DataError

if TYPE_CHECKING:
    from mmtune.index.collection import Collection

HAS_ACTIONS = True
"""Tells `dispatch` that options and positionals of an action are not intermixed with those of the verb."""


class Action(NamedTuple):
    """One action of the verb."""

    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]
    text: str
    example: str


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, action in ACTIONS.items():
        p = actions.add_parser(
            name,
            help=action.text[:1].lower() + action.text[1:].rstrip("."),
            description=f"{action.text}\n\n  {action.example}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == "plan":
            p.add_argument("collection", metavar="COLLECTION", nargs="?", help="its directory")
        else:
            p.add_argument("collection", metavar="COLLECTION", help="its directory")
        action.add_arguments(p)
        p.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        p.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def run(args: argparse.Namespace) -> Result:
    return ACTIONS[args.action].run(args)


def _open(args: argparse.Namespace, create: bool = False) -> "Collection":
    from mmtune.index.collection import Collection

    return Collection(args.collection, create=create)


def _data(spec: str | None) -> Any:
    from mmtune.data.shards.dataset import open_data

    return None if spec is None else open_data(spec)


# --- building and changing ---------------------------------------------------------------------------------------


def _embedding(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", required=True, metavar="MODEL", help="an artifact, hf:DIR, open_clip:DIR, tiny:NAME")
    p.add_argument("--only", action="append", metavar="NAME", help="index this modality (default: those that lie in files)")
    p.add_argument("--dim", type=int, metavar="N", help="the first N dimensions: a space of its own")
    p.add_argument("--batch-size", type=int, default=64)


def _build_arguments(p: argparse.ArgumentParser) -> None:
    _embedding(p)
    p.add_argument("--data", metavar="DATA", help="rows that the collection takes first (default: the items it has)")
    p.add_argument("--prune", action="store_true", help="and delete the items that DATA lacks")
    p.add_argument("--store", help="faiss (default), lancedb, pgvector, qdrant")
    p.add_argument("--url", help="the store's database, or env:NAME of the variable that holds it")
    p.add_argument("--index", default="auto", help="auto (default), flat, hnsw, ivfpq")
    p.add_argument("--search-dim", type=int, metavar="N", help="search by the first N dimensions, re-rank by all (faiss)")
    p.add_argument("--memory-mb", type=int, metavar="N", help="what making an ivfpq index may take (default 1024; faiss)")
    p.add_argument("--quiet", action="store_true", help="no progress")


def _build(args: argparse.Namespace) -> Result:
    from mmtune.runtime.distributed import launched_world_size

    if launched_world_size() > 1:
        raise DataError(
            "`index build` is one process's: share the embedding first, torchrun ... -m mmtune index embed COLLECTION"
        )
    with _open(args, create=True) as coll:
        done = coll.build(
            args.model,
            _data(args.data),
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
    return Result(done.to_dict(), say.built(done))


def _embed_arguments(p: argparse.ArgumentParser) -> None:
    from mmtune.cli.embed_verb import engine

    _embedding(p)
    p.add_argument("--data", required=True, metavar="DATA", help="the rows that will be built from")
    engine(p)
    p.add_argument("--quiet", action="store_true", help="no progress")


def _embed(args: argparse.Namespace) -> Result:
    from pathlib import Path

    from mmtune.index.shared_embedding import embed_into_collection
    from mmtune.runtime.distributed import silence_other_ranks

    silence_other_ranks()
    given = str(Path(args.collection).absolute()), args.model, args.data, args.only, args.batch_size
    if args.engine == "ray":
        from mmtune.embedding.ray_workers import on_ray

        on_ray(embed_into_collection, (*given, True), args.workers, dim=args.dim)
    done = embed_into_collection(*given, args.quiet, dim=args.dim)
    return Result(done.to_dict(), say.embedded(done, args.collection))


def _plan_arguments(p: argparse.ArgumentParser) -> None:
    _embedding(p)
    p.add_argument("--data", metavar="DATA", help="a sample of these rows is embedded (default: of the collection's items)")
    p.add_argument("--items", type=int, metavar="N", help="how many there will be (default: as many as there are)")
    p.add_argument("--price-per-hour", type=float, metavar="X", help="of this machine")
    p.add_argument("--sample", type=int, default=64, metavar="N", help="rows to measure on (default %(default)s)")


def _plan(args: argparse.Namespace) -> Result:
    from mmtune.index.release.cost import estimate_data_cost

    amounts = args.items, args.price_per_hour
    options = {"dim": args.dim, "sample": args.sample, "batch_size": args.batch_size}
    if args.collection:
        with _open(args) as coll:
            cost = coll.plan(args.model, _data(args.data), *amounts, modalities=args.only, **options)
    elif args.data:
        cost = estimate_data_cost(args.model, args.data, *amounts, wanted=args.only, **options)
    else:
        raise DataError("plan: what is to be embedded? name a COLLECTION or --data DATA")
    return Result(cost.to_dict(), say.plan(cost))


def _upsert_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--data", required=True, metavar="DATA", help="packed rows; an item with the same id is replaced")


def _upsert(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        done = coll.upsert(_data(args.data), quiet=False)
    return Result(done.to_dict(), say.taken(done), 1 if done.behind else 0)


def _delete_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("ids", nargs="+", metavar="ID")


def _delete(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        done = coll.delete(args.ids)
    return Result(done.to_dict(), f"{done.deleted} deleted, {done.unknown} unknown", 1 if done.behind else 0)


def _drop_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("version", metavar="VERSION")
    p.add_argument("--why")


def _drop(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        done = coll.drop(args.version, args.why)
    return Result(done.to_dict(), f"{args.version} is gone")


# --- searching ---------------------------------------------------------------------------------------------------


def _search_arguments(p: argparse.ArgumentParser) -> None:
    what = p.add_mutually_exclusive_group(required=True)
    for name in modalities.names():
        language = modalities.get(name).language
        what.add_argument(f"--{name}", dest=f"query_{name}", metavar="VALUE" if language else "PATH", help=f"search by {name}")
    what.add_argument("--file", metavar="PATH", help="search by a file, of the modality that its extension says")
    what.add_argument("--id", metavar="ID", help="search by an item, for others like it")
    p.add_argument("-k", type=int, default=10, help="how many (default %(default)s)")
    p.add_argument("--filter", metavar="EXPR", help="over metadata, e.g. \"category = 'Apple' and price < 3\"")
    p.add_argument("--version", metavar="VERSION", help="ask this version (default: live)")
    p.add_argument("--target", action="append", metavar="NAME", help="only what this modality's index finds")
    p.add_argument("--hybrid", action="store_true", help="fused with BM25 over the items' words")
    p.add_argument(
        "--group-by",
        metavar="COLUMN",
        help='"group" or a metadata column: one result for each of its values, the best, e.g. of all photos of a product',
    )


def _query(args: argparse.Namespace) -> Any:
    if args.id is not None:
        return {"item": args.id}
    if args.file is None:
        return {m: v for m in modalities.names() if (v := getattr(args, f"query_{m}")) is not None}
    from pathlib import Path

    path, known = Path(args.file), modalities.by_extension()
    name = known.get(path.suffix.lower().lstrip("."))
    if name is None:
        raise DataError(f"{path}: no modality has the extension {path.suffix!r}; known: {', '.join(sorted(known))}")
    try:
        return {name: path.read_bytes()}
    except OSError as e:
        raise DataError(f"{path}: {e.strerror}") from None


def _search(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        response = coll.search(
            k=args.k,
            where=args.filter,
            version=args.version,
            target=args.target,
            hybrid=args.hybrid,
            group_by=args.group_by,
            **_query(args),
        )
    return Result(response.to_dict(), say.response(response))


# --- deciding ----------------------------------------------------------------------------------------------------


def _shadow_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("version", nargs="?", metavar="VERSION", help="staged version; without it, only the report")
    p.add_argument("--fraction", type=float, metavar="F", help="repeat this share of live searches on it (a server's, too)")
    p.add_argument("--queries", metavar="DATA", help="ask both with these rows now, without traffic")
    p.add_argument("-k", type=int, default=10, help="answers to compare with --queries (default %(default)s)")
    p.add_argument("--off", action="store_true", help="stop shadowing")


def _shadow(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        if args.off:
            coll.shadow(None)
        elif args.version and (args.fraction is not None or not args.queries):
            coll.shadow(args.version, 0.1 if args.fraction is None else args.fraction)
        if args.queries and args.version:
            coll.shadow_searches.replay(args.version, _data(args.queries), args.k, quiet=False)
        report, preference = coll.shadow_report(args.version), coll.preference(args.version)
    document = {**report.to_dict(), "preference": preference.to_dict()}
    return Result(document, say.shadow(report, preference))


def _promote_arguments(p: argparse.ArgumentParser) -> None:
    from mmtune.cli.compare_verb import gate_options

    p.add_argument("version", metavar="VERSION")
    p.add_argument("--queries", metavar="DATA", help="held-out rows, which neither model was trained on")
    p.add_argument("--gate", metavar="FILE", help="YAML with the gate (a recipe, or the gate alone), as `mmtune compare`")
    gate_options(p)
    p.add_argument("--retention", metavar="DATA", help="other shards on which nothing may be lost")
    p.add_argument("--slice", action="append", default=[], metavar="COLUMN", help="a metadata column of the held-out rows")
    p.add_argument("--qrels", metavar="FILE", help="judgments of held-out rows and items, TREC or JSON lines")
    p.add_argument("--min-recall", type=float, default=0.95, help="of the index against exact search (default %(default)s)")
    p.add_argument("--max-slowdown", type=float, default=2.0, help="times live's search time (default %(default)s)")
    p.add_argument("--force", action="store_true", help="in spite of the reasons; needs --why")
    p.add_argument("--why", help="kept in the journal")


def _promote(args: argparse.Namespace) -> Result:
    from mmtune.cli.compare_verb import gate_of

    with _open(args) as coll:
        done = coll.promote(
            args.version,
            gate=gate_of(args),
            queries=_data(args.queries),
            force=args.force,
            why=args.why,
            qrels=args.qrels,
            retention=_data(args.retention),
            slices=args.slice,
            min_recall=args.min_recall,
            max_slowdown=args.max_slowdown,
        )
    return Result(done.to_dict(), say.promoted(done), 0 if done.promoted else 1)


def _rollback_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--why", help="kept in the journal")


def _rollback(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        done = coll.rollback(args.why)
    return Result(done.to_dict(), f"{done.version} is live again (it was {done.rolled_back})")


def _judgments_arguments(p: argparse.ArgumentParser) -> None:
    p.add_argument("--out", required=True, metavar="DIR", help="gets judgments.jsonl, data and pairs, packed")


def _judgments(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        done = coll.export_feedback(args.out)
    return Result(
        done.to_dict(),
        f"{done.verdicts} verdicts in {done.judgments}, their rows in {done.data}; {done.unused} unused"
        + (f"\npairs to train on in {done.pairs}" if done.pairs else ""),
    )


# --- looking -----------------------------------------------------------------------------------------------------


def _nothing(p: argparse.ArgumentParser) -> None:
    pass


def _status(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        status = coll.status()
    return Result(status.to_dict(), say.status(status))


def _journal(args: argparse.Namespace) -> Result:
    with _open(args) as coll:
        lines = coll.journal()
    return Result({"journal": lines}, say.journal(lines))


ACTIONS = {
    "plan": Action(
        _plan_arguments,
        _plan,
        "Estimate hours, bytes and price of embedding, measured on a sample.",
        "mmtune index plan --model MODEL --data DATA --items 1000000",
    ),
    "build": Action(
        _build_arguments,
        _build,
        "Embed the items into a new version; the live version keeps serving.",
        "mmtune index build COLLECTION --model runs/a/artifact --data packed/catalog",
    ),
    "embed": Action(
        _embed_arguments,
        _embed,
        "Compute the vectors of a build, shared by all processes and machines that run this.",
        "mmtune index embed COLLECTION --model MODEL --data DATA",
    ),
    "search": Action(
        _search_arguments,
        _search,
        "Find the best items for a value, a file or an item.",
        "mmtune index search COLLECTION --file photo.jpg -k 5",
    ),
    "status": Action(
        _nothing,
        _status,
        "Show versions, models, counts, gate results, and which version is live since when.",
        "mmtune index status COLLECTION",
    ),
    "upsert": Action(
        _upsert_arguments,
        _upsert,
        "Insert or replace items, in every version.",
        "mmtune index upsert COLLECTION --data packed/new",
    ),
    "delete": Action(
        _delete_arguments, _delete, "Remove items, from every version.", "mmtune index delete COLLECTION ID-1 ID-2"
    ),
    "shadow": Action(
        _shadow_arguments,
        _shadow,
        "Repeat live searches on a staged version, and report the differences.",
        "mmtune index shadow COLLECTION VERSION --fraction 0.1",
    ),
    "promote": Action(
        _promote_arguments,
        _promote,
        "Make a version live if it passes the gate.",
        "mmtune index promote COLLECTION VERSION --queries packed/test",
    ),
    "rollback": Action(
        _rollback_arguments,
        _rollback,
        "Make the previous version live again, at once.",
        'mmtune index rollback COLLECTION --why "complaints"',
    ),
    "journal": Action(_nothing, _journal, "Show who did what, when and why.", "mmtune index journal COLLECTION"),
    "judgments": Action(
        _judgments_arguments,
        _judgments,
        "Export clicks and marks as judgments for evaluation and mining.",
        "mmtune index judgments COLLECTION --out feedback",
    ),
    "drop": Action(_drop_arguments, _drop, "Remove a version that is not live.", "mmtune index drop COLLECTION VERSION"),
}
