"""`mmtune pairs segments`: clips with captions from long recordings."""

import argparse

from mmtune.cli.dispatch import Result

TEXT = "Cut long recordings into clips with captions, by annotation files (Audacity, Raven, CSV) or by detection."
EXAMPLE = "mmtune pairs segments recordings/ --split train=0.8,val=0.2 --out pairs/clips"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a recording, a folder of recordings, or a table with a row for each; annotations of NAME.wav are NAME.txt (Audacity), "
        "NAME.selections.txt (Raven) or NAME.csv beside it",
    )
    parser.add_argument(
        "--annotations",
        action="append",
        default=[],
        metavar="TABLE",
        help="table with a row for each segment of all recordings: file, start, end (or duration) in seconds, label; may be repeated",
    )
    parser.add_argument(
        "--recording", metavar="COL", help="column of the files, if SOURCE is a table (usual names are recognised)"
    )
    parser.add_argument(
        "--caption",
        default="{label}",
        metavar="TEMPLATE",
        help='template of the captions (default "{label}"), as in `pairs catalog`',
    )
    parser.add_argument("--group", metavar="COL", help="column of the groups, such as label (default: no groups)")
    parser.add_argument(
        "--detect",
        choices=("energy", "onset"),
        help="find segments in recordings without annotations: where it is louder than the noise, or from one onset to the next",
    )
    parser.add_argument(
        "--threshold-db", type=float, default=12.0, metavar="DB", help="level above the noise for --detect energy (default 12)"
    )
    parser.add_argument(
        "--gap", type=float, default=0.2, metavar="S", help="join detected segments with shorter pauses (default 0.2)"
    )
    parser.add_argument(
        "--pad", type=float, default=0.0, metavar="S", help="seconds to add before and after a segment (default 0)"
    )
    parser.add_argument("--min-seconds", type=float, default=0.1, metavar="S", help="drop shorter segments (default 0.1)")
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, metavar="S", help="cut longer segments into equal pieces (default 30)"
    )
    parser.add_argument(
        "--split",
        action="append",
        default=[],
        metavar="NAME=SHARE",
        help="add the column split, e.g. train=0.8,val=0.2; no recording is in two",
    )
    parser.add_argument(
        "--split-by", metavar="COL", help="column that is never in two splits, such as machine (default: the recording)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another number makes other splits (default 0)")


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.recording_segments import pairs_from_segments

    result = pairs_from_segments(
        args.source,
        args.out,
        annotations=args.annotations,
        recording=args.recording,
        caption=args.caption,
        group=args.group,
        detect=args.detect,
        threshold_db=args.threshold_db,
        gap=args.gap,
        pad=args.pad,
        min_seconds=args.min_seconds,
        max_seconds=args.max_seconds,
        split=args.split,
        split_by=args.split_by,
        seed=args.seed,
        overwrite=args.overwrite,
        quiet=args.quiet,
    )
    return Result(result.to_dict(), str(result))
