"""Write the vectors and ids of a corpus as Parquet: OUT/<modality>/part-*.parquet (id, group, vector) and OUT/meta.json.

  mmtune embed runs/a/artifact packed/test --out vectors

A killed job continues where it stopped; vectors of another model are refused. Started several times on one DIR (torchrun
--nproc-per-node N -m mmtune embed ..., a Slurm array, two terminals) the processes share the parts.
"""

import argparse
from pathlib import Path

from mmtune.cli.dispatch import Result


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model that embeds")
    parser.add_argument("data", metavar="DATA", help="packed rows")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets the Parquet files")
    parser.add_argument("--only", action="append", metavar="NAME", help="this modality only (may be repeated)")
    parser.add_argument(
        "--dim", type=int, metavar="N", help="use the first N dimensions, normalised again: an embedding space of its own"
    )
    parser.add_argument(
        "--role", metavar="NAME", help='the prompt around captions, e.g. "query" (default: as candidates in an index)'
    )
    parser.add_argument("--batch-size", type=int, default=64, help="default %(default)s")
    parser.add_argument(
        "--skip-bad", action="store_true", help="decode all values first; skip those that cannot be decoded, and say how many"
    )
    engine(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress")


def engine(parser: argparse.ArgumentParser) -> None:
    """Options for where the workers run."""
    parser.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="here: in this process; ray: on a Ray cluster (RAY_ADDRESS), or a local one",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="ray: number of processes (default: one per GPU, else one per core)"
    )


def run(args: argparse.Namespace) -> Result:
    from mmtune.embedding.parquet_parts import embed
    from mmtune.runtime.distributed import silence_other_ranks

    silence_other_ranks()
    common, more = (args.only, args.batch_size), {"dim": args.dim, "role": args.role, "skip_bad": args.skip_bad}
    if args.engine == "ray":
        from mmtune.embedding.ray_workers import on_ray

        on_ray(embed, (args.model, args.data, str(Path(args.out).absolute()), *common, True), args.workers, **more)
    done = embed(args.model, args.data, args.out, *common, args.quiet, **more)
    lines = [f"{m}: {c.rows} vectors in {c.parts} parts, {c.missing} rows without it" for m, c in done.counts.items()]
    return Result(
        {**done.to_dict(), "out": args.out}, "\n".join([f"{args.out}  {done.fingerprint}  {done.dim} dimensions", *lines])
    )
