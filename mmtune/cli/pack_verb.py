"""Check a table (CSV, TSV, JSONL, Parquet), a folder of files or tar files, and pack the rows as WebDataset shards.

  mmtune pack photos.csv --out packed/train --group sku

Columns with common names are recognised; all other columns become metadata. File paths in a table are relative to the table.
Rows that cannot be used are listed in DIR/rejected.jsonl with the reason. Resumable: after an interruption, run the same command
again; it packs only the remaining rows. With --engine ray the files are read and checked on a Ray cluster, whose nodes must see
them under the same paths.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mmtune import modalities
from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.embed_verb import engine
from mmtune.contracts import Option

if TYPE_CHECKING:
    from mmtune.data.pack.pack import PackResult, ProgressCallback


def _options() -> dict[str, Option]:
    """Return the options of all modalities by name. An option that several modalities have is one option for all of them."""
    return {k: o for n in reversed(modalities.names()) for k, o in modalities.get(n).options.items()}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .csv, .tsv, .jsonl or .parquet table; a folder with one subfolder per class, or with caption files beside the "
        "media files; or WebDataset tar files",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="new directory for the shards")
    for name in modalities.names():
        usual = ", ".join(dict.fromkeys((name, *modalities.get(name).columns)))
        parser.add_argument(f"--{name}", dest=f"column_{name}", metavar="COL", help=f"{name} column (recognised: {usual})")
    parser.add_argument(
        "--id",
        metavar="COL",
        help="column (or, in a tar file, field of the .json files) of the row ids (recognised: id; without one, the path or the "
        "row number)",
    )
    parser.add_argument(
        "--group", metavar="COL", help="column of the groups; rows of the same group match each other (recognised: group)"
    )
    parser.add_argument(
        "--split", metavar="COL", help="column of the splits; each value gets its own subdirectory of DIR with its own shards"
    )
    parser.add_argument(
        "--query", metavar="COL[:MODALITY]", help="column of the queries of explicit negatives (recognised: anchor, query)"
    )
    parser.add_argument("--positive", metavar="COL[:MODALITY]", help="column of each query's positive (recognised: positive)")
    parser.add_argument(
        "--negative",
        action="append",
        default=[],
        metavar="COL[:MODALITY]",
        help="column of negatives, may be repeated (recognised: negative, negative_2, negative_MODALITY ...); they are written to "
        "DIR/negatives.parquet, on which `mmtune train` trains",
    )
    parser.add_argument(
        "--score",
        metavar="COL",
        help="column with the score of each row's pair, also written to DIR/judgments.jsonl for `mmtune eval --qrels`",
    )
    parser.add_argument("--shard-size", default="256MB", metavar="SIZE", help="maximum size of a shard (default 256MB)")
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help=f"worker processes that check rows (default here: {workers}; with --engine ray one per core of the cluster)",
    )
    engine(parser, workers=False)
    parser.add_argument(
        "--max-rejected",
        type=float,
        default=0.05,
        metavar="F",
        help="fail at the end if more than this fraction of the rows is rejected (default 0.05)",
    )
    parser.add_argument("--max-bytes", default="512MB", metavar="SIZE", help="reject files larger than this (default 512MB)")
    parser.add_argument(
        "--timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="reject files that take more than this many seconds to decode (default 60)",
    )
    for name, option in _options().items():
        dashed, text = f"--{name.replace('_', '-')}", f"{option.help} (default {option.default})"
        if option.type is bool:
            parser.add_argument(dashed, dest=f"option_{name}", action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(dashed, dest=f"option_{name}", type=option.type, metavar="N", help=text)
    parser.add_argument(
        "--drop",
        metavar="FILE",
        help="file of the rows to leave out: written by `mmtune doctor --out FILE`, or one id per line",
    )
    parser.add_argument("--overwrite", action="store_true", help="delete the shards in DIR and start again")
    add_quiet(parser)


def _workers(args: argparse.Namespace) -> int:
    return args.workers or (0 if args.engine == "ray" else min(8, os.cpu_count() or 1))


def run(args: argparse.Namespace) -> Result:
    from mmtune.data.pack.pack import pack

    columns = {n: c for n in modalities.names() if (c := getattr(args, f"column_{n}")) is not None}
    options = {k: v for k in _options() if (v := getattr(args, f"option_{k}")) is not None}
    started = time.monotonic()
    with _display(args.quiet) as progress:
        result = pack(
            args.source,
            args.out,
            columns=columns,
            id=args.id,
            group=args.group,
            split=args.split,
            query=args.query,
            positive=args.positive,
            negatives=args.negative,
            score=args.score,
            shard_size=args.shard_size,
            workers=_workers(args),
            max_rejected=args.max_rejected,
            options=options,
            max_bytes=args.max_bytes,
            timeout=args.timeout,
            overwrite=args.overwrite,
            drop=args.drop,
            engine=args.engine,
            progress=progress,
        )
    document = {**result.to_dict(), "seconds": round(time.monotonic() - started, 3)}
    return Result(document, _text(result))


def _shards(number: int) -> str:
    return "1 shard" if number == 1 else f"{number} shards"


def _text(result: "PackResult") -> str:
    counts = f"{result.packed} of {result.rows} rows in {_shards(result.shards)}"
    lines = [f"{counts}: {result.out} ({', '.join(result.modalities)})"]
    lines += [f"  {n}: {s.packed} of {s.rows} rows in {_shards(s.shards)}" for n, s in result.splits.items()]
    if len(result.modalities) == 1:
        lines.append(
            f"Only {result.modalities[0]}: enough to embed, index and predict. To train across modalities, pack a table that also has "
            "another one, such as captions (docs/your_data.md)"
        )
    if result.list_rows:
        lines.append(
            f"{result.list_rows} of the rows come from lists: each further value of a list is a row of its own (ids ID#2, ID#3, "
            "...), in the same group as the first value"
        )
    if result.repeated:
        lines.append(
            f"{result.repeated} source rows repeat an earlier row's query and positive; their negatives were added to that row"
        )
    lines += [f"{n:,} negatives in {name}" for name, n in result.negatives.pairs.items()]
    if result.negatives.judgments:
        lines.append(f"{result.negatives.judgments:,} graded judgments in judgments.jsonl")
    if result.dropped:
        lines.append(f"{result.dropped} rows left out because of --drop")
    if result.rejected:
        lines.append(f"{result.rejected} rejected, listed in {result.rejected_file}:")
        lines += [f"  {n} x {reason}" for reason, n in result.reasons.items()]
    return "\n".join(lines)


@contextmanager
def _display(quiet: bool) -> "Iterator[ProgressCallback | None]":
    """Yields a progress callback that prints on standard error: a bar on a terminal, otherwise a line every ten seconds."""
    if quiet:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    started = time.monotonic()
    shown = [started]

    def state(rows: int, rejected: int) -> str:
        return f"{rows} rows, {rejected} rejected, {rows / max(time.monotonic() - started, 1e-3):.0f} rows/s"

    if not console.is_terminal:

        def lines(rows: int, packed: int, rejected: int, total: int) -> None:
            if time.monotonic() - shown[0] >= 10:
                shown[0] = time.monotonic()
                print(f"pack: {state(rows, rejected)} of about {total}", file=sys.stderr, flush=True)

        yield lines
        return
    with Progress(
        TextColumn("pack"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as bar:
        task = bar.add_task("pack", total=None, state="")

        def update(rows: int, packed: int, rejected: int, total: int) -> None:
            if time.monotonic() - shown[0] >= 0.1:
                shown[0] = time.monotonic()
                bar.update(task, completed=rows, total=max(total, rows), state=state(rows, rejected))

        yield update
