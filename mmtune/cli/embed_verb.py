"""Embed packed data and write the embeddings as Parquet: DIR/MODALITY/part-*.parquet (id, group, vector) and DIR/meta.json.

  mmtune embed runs/a/artifact packed/test --out vectors
  mmtune embed runs/a/artifact "s3://bucket/shards-{000000..009999}.tar" --read stream --out vectors

Resumable: after an interruption, run the same command again. A DIR with embeddings of another model is rejected. To use several
processes, start the command several times with the same DIR (torchrun --nproc-per-node N -m mmtune embed ..., a Slurm array, two
terminals); the processes share the work.
"""

import argparse

from mmtune.cli.collection_arguments import add_skip_bad
from mmtune.cli.dispatch import Result, add_quiet


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the model that embeds")
    parser.add_argument("data", metavar="DATA", help="packed rows to embed")
    parser.add_argument("--out", required=True, metavar="DIR", help="directory in which to write the Parquet files")
    parser.add_argument("--only", action="append", metavar="NAME", help="embed only this modality (may be repeated)")
    parser.add_argument(
        "--dim", type=int, metavar="N", help="truncate the embeddings to N dimensions and normalise them again (Matryoshka)"
    )
    parser.add_argument(
        "--role", metavar="NAME", help='prompt template for captions, e.g. "query" (default: the template for candidates)'
    )
    parser.add_argument("--batch-size", type=int, default=64, help="rows per forward pass (default %(default)s)")
    add_read(parser)
    add_skip_bad(parser)
    engine(parser)
    add_quiet(parser)


def add_read(parser: argparse.ArgumentParser) -> None:
    """Add --read; not given, it is None."""
    parser.add_argument(
        "--read",
        choices=("index", "stream"),
        help="stream: read shards from start to end, embed while reading, and keep no copies of them, for data larger than the disk; "
        "index: with random access (default: index; for pipe:COMMAND stream)",
    )


def engine(parser: argparse.ArgumentParser, workers: bool = True) -> None:
    """Add the options that choose where a command runs: --engine, and --workers unless `workers` is False."""
    parser.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="here (default): in this process; ray: on the Ray cluster at RAY_ADDRESS, or on a local one",
    )
    if workers:
        parser.add_argument(
            "--workers",
            type=int,
            metavar="N",
            help="number of Ray processes (default: one per GPU; without GPUs, one per core)",
        )


def run(args: argparse.Namespace) -> Result:
    from mmtune.data.shards.streamed_sets import is_streamed
    from mmtune.embedding.parquet_parts import embed as embed_indexed
    from mmtune.embedding.stream_parts import embed_stream
    from mmtune.runtime.distributed import silence_other_ranks

    silence_other_ranks()
    embed = embed_stream if is_streamed(args.data, args.read) else embed_indexed
    common, more = (args.only, args.batch_size), {"dim": args.dim, "role": args.role, "skip_bad": args.skip_bad}
    if args.engine == "ray":
        from mmtune.embedding.ray_workers import on_ray

        on_ray(embed, (args.model, args.data, args.out, *common, True), args.workers, **more)
    done = embed(args.model, args.data, args.out, *common, args.quiet, **more)
    lines = [f"{m}: {c.rows} vectors in {c.parts} parts, {c.missing} rows without {m}" for m, c in done.counts.items()]
    return Result(
        {**done.to_dict(), "out": args.out}, "\n".join([f"{args.out}  {done.fingerprint}  {done.dim} dimensions", *lines])
    )
