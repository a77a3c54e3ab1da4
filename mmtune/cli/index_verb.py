"""Build, search and update a collection: items, versions with a pinned model each, and a pointer to the live version.

  mmtune index embed    COLLECTION --model MODEL --data DATA     share the embedding among processes or machines, optional
  mmtune index build    COLLECTION --model MODEL --data DATA     embed into a new version; the live version keeps serving
  mmtune index promote  COLLECTION VERSION --queries DATA        make it live, if it passes the gate (exit 1: it does not)
  mmtune index rollback COLLECTION                               make the previous version live again, at once
`mmtune index ACTION --help` explains an action.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from mmtune.cli.dispatch import Result
from mmtune.cli.index_item_actions import (
    build_action,
    build_arguments,
    delete_action,
    delete_arguments,
    drop_action,
    drop_arguments,
    embed_action,
    embed_arguments,
    plan_action,
    plan_arguments,
    upsert_action,
    upsert_arguments,
)
from mmtune.cli.index_release_actions import (
    judgments_action,
    judgments_arguments,
    promote_action,
    promote_arguments,
    rollback_action,
    rollback_arguments,
    shadow_action,
    shadow_arguments,
)
from mmtune.cli.index_search_actions import journal_action, no_arguments, search_action, search_arguments, status_action

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


ACTIONS = {
    "plan": Action(
        plan_arguments,
        plan_action,
        "Estimate hours, bytes and price of embedding, measured on a sample.",
        "mmtune index plan --model MODEL --data DATA --items 1000000",
    ),
    "build": Action(
        build_arguments,
        build_action,
        "Embed the items into a new version; the live version keeps serving.",
        "mmtune index build COLLECTION --model runs/a/artifact --data packed/catalog",
    ),
    "embed": Action(
        embed_arguments,
        embed_action,
        "Compute the vectors of a build, shared by all processes and machines that run this.",
        "mmtune index embed COLLECTION --model MODEL --data DATA",
    ),
    "search": Action(
        search_arguments,
        search_action,
        "Find the best items for a value, a file or an item.",
        "mmtune index search COLLECTION --file photo.jpg -k 5",
    ),
    "status": Action(
        no_arguments,
        status_action,
        "Show versions, models, counts, gate results, and which version is live since when.",
        "mmtune index status COLLECTION",
    ),
    "upsert": Action(
        upsert_arguments,
        upsert_action,
        "Insert or replace items, in every version.",
        "mmtune index upsert COLLECTION --data packed/new",
    ),
    "delete": Action(
        delete_arguments, delete_action, "Remove items, from every version.", "mmtune index delete COLLECTION ID-1 ID-2"
    ),
    "shadow": Action(
        shadow_arguments,
        shadow_action,
        "Repeat live searches on a staged version, and report the differences.",
        "mmtune index shadow COLLECTION VERSION --fraction 0.1",
    ),
    "promote": Action(
        promote_arguments,
        promote_action,
        "Make a version live if it passes the gate.",
        "mmtune index promote COLLECTION VERSION --queries packed/test",
    ),
    "rollback": Action(
        rollback_arguments,
        rollback_action,
        "Make the previous version live again, at once.",
        'mmtune index rollback COLLECTION --why "complaints"',
    ),
    "journal": Action(no_arguments, journal_action, "Show who did what, when and why.", "mmtune index journal COLLECTION"),
    "judgments": Action(
        judgments_arguments,
        judgments_action,
        "Export clicks and marks as judgments for evaluation and mining.",
        "mmtune index judgments COLLECTION --out feedback",
    ),
    "drop": Action(drop_arguments, drop_action, "Remove a version that is not live.", "mmtune index drop COLLECTION VERSION"),
}
