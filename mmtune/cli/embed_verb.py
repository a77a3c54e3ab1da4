"""Vectors and ids of a corpus: OUT/<modality>/part-*.parquet (id, group, vector) and OUT/meta.json.

A killed run goes on where it stopped; vectors of another model are refused. Started several times on one DIR (torchrun
--nproc-per-node N -m mmtune embed ..., a Slurm array, two terminals) the processes share the parts.
"""

import argparse

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--only", action="append", metavar="NAME", help="this modality only (may be repeated)")
    parser.add_argument("--dim", type=int, metavar="N", help="the first N dimensions, of unit length again: a space of its own")
    parser.add_argument(
        "--role", metavar="NAME", help='the prompt around words, e.g. "query" (default: as an index holds them)'
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def run(args: argparse.Namespace) -> Result:
    from mmtune.embed import embed
    from mmtune.processes import hush_others

    hush_others()
    meta = embed(args.model, args.data, args.out, args.only, args.batch_size, args.quiet, dim=args.dim, role=args.role)
    lines = [
        f"{m}: {c['rows']} vectors in {c['parts']} parts, {c['missing']} rows without it" for m, c in meta["counts"].items()
    ]
    return Result(
        {**meta, "out": args.out}, "\n".join([f"{args.out}  {meta['fingerprint']}  {meta['dim']} dimensions", *lines])
    )
