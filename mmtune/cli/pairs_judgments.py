"""`mmtune pairs judgments`: import human judgments."""

import argparse

from mmtune.cli.dispatch import Result

TEXT = (
    "Import human judgments (a CSV, JSONL or Parquet table, or a JSON export of Label Studio), with the annotators' agreement."
)
EXAMPLE = "mmtune pairs judgments export.json --query query --item sku --out DIR"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="FILE", help=".csv, .tsv, .jsonl, .parquet, or Label Studio's .json (JSON, JSON-MIN)")
    parser.add_argument("--query", metavar="COL", help="column (of Label Studio: field of the task's data) of the queries")
    parser.add_argument(
        "--item", metavar="COL", help="the same of the item ids (recognised: item, item_id, doc_id, candidate ...)"
    )
    parser.add_argument("--grade", metavar="COL", help="column of the answers (of Label Studio: name of the control)")
    parser.add_argument("--annotator", metavar="COL", help="column of who answered (recognised: annotator, judge, rater, user)")
    parser.add_argument(
        "--grades", metavar="WORD=N,...", help="grade of each answer (known: match 1, not 0, unsure is left out)"
    )
    parser.add_argument(
        "--catalog", metavar="TABLE", help="table of the items, whose contents join the pairs, ready for `pack`"
    )
    parser.add_argument("--catalog-id", metavar="COL", help="its column of item ids (default: id)")
    parser.add_argument("--candidate", metavar="COL", help="its column of what is searched for (recognised: usual names)")


def run(args: argparse.Namespace) -> Result:
    from mmtune.pairs.agreement import Agreement
    from mmtune.pairs.import_judgments import pairs_from_judgments

    result = pairs_from_judgments(
        args.source,
        args.out,
        query=args.query,
        item=args.item,
        grade=args.grade,
        annotator=args.annotator,
        grades=args.grades,
        catalog=args.catalog,
        catalog_id=args.catalog_id,
        candidate=args.candidate,
        overwrite=args.overwrite,
    )
    return Result(result.to_dict(), f"{result}\n{Agreement(**result.measures['agreement'])}")
