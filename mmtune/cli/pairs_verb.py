"""Make pairs, graded judgments and groups of what a team has; `mmtune pack` takes what is written.

  mmtune pairs logs LOG.parquet --query q --item sku --position rank --clicked clicked --time ts --out DIR

DIR gets pairs.parquet (query, item, grade, weight and carried columns), judgments.jsonl (graded relevance for `mmtune eval --qrels`)
and dropped.json (what was not used, and why). After an interruption, run the same command again.

`mmtune pairs KIND --help` explains a kind.
"""

import argparse
from types import ModuleType

from mmtune.cli import (
    pairs_catalog,
    pairs_duplicates,
    pairs_generate,
    pairs_judgments,
    pairs_labels,
    pairs_logs,
    pairs_segments,
    pairs_split,
)
from mmtune.cli.dispatch import Result, add_quiet

HAS_ACTIONS = True
"""Read by `dispatch`: argparse cannot parse intermixed options and positional arguments of a verb that has actions."""

KINDS: dict[str, ModuleType] = {
    "logs": pairs_logs,
    "catalog": pairs_catalog,
    "duplicates": pairs_duplicates,
    "labels": pairs_labels,
    "judgments": pairs_judgments,
    "segments": pairs_segments,
    "generate": pairs_generate,
    "split": pairs_split,
}
"""Kind of source -> its module, which has TEXT (one sentence), EXAMPLE, arguments(parser) and run(args)."""


def arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, module in KINDS.items():
        p = kinds.add_parser(
            name,
            help=module.TEXT[:1].lower() + module.TEXT[1:].rstrip("."),
            description=f"{module.TEXT}\n\n  {module.EXAMPLE}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.arguments(p)
        p.add_argument("--out", required=True, metavar="DIR", help="directory to write")
        p.add_argument(
            "--overwrite", action="store_true", help="write DIR again, also if other arguments or another source made it"
        )
        add_quiet(p)
        p.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        p.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def run(args: argparse.Namespace) -> Result:
    result: Result = KINDS[args.kind].run(args)
    return result
