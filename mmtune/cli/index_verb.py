"""Build, search and update a collection: a vector index of items, with one version per model.

The live version is the one that is searched; other versions can be built and tested beside it.

  mmtune index embed    COLLECTION --model MODEL --data DATA     optional: compute the embeddings in several processes
  mmtune index build    COLLECTION --model MODEL --data DATA     embed the items into a new version, which is not live yet
  mmtune index promote  COLLECTION VERSION --queries DATA        make a version live, if it passes the checks (else exit 1)
  mmtune index rollback COLLECTION                               make the previously live version live again, immediately

  mmtune index health   COLLECTION                               say whether search is well today (probe measures the recall)
  mmtune index backup   COLLECTION --out FILE                    and restore, clone, verify, repair, gc, compact, erase

`mmtune index ACTION --help` explains an action.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

from mmtune.cli.dispatch import Result, add_quiet
from mmtune.cli.index_adopt_action import adopt_action, adopt_arguments
from mmtune.cli.index_health_actions import health_action, health_arguments, probe_action, probe_arguments
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
from mmtune.cli.index_maintenance_actions import (
    backup_action,
    backup_arguments,
    clone_action,
    clone_arguments,
    compact_action,
    compact_arguments,
    erase_action,
    erase_arguments,
    gc_action,
    repair_action,
    restore_action,
    verify_action,
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
"""Read by `dispatch`: argparse cannot parse intermixed options and positional arguments of a verb that has actions."""


class Action(NamedTuple):
    """One action of `mmtune index`.

    add_arguments: adds the arguments of the action to a parser.
    run: runs the action.
    text: description, one sentence.
    example: an example command.
    """

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
            p.add_argument("collection", metavar="COLLECTION", nargs="?", help="directory of the collection (optional)")
        else:
            if name == "restore":
                p.add_argument("file", metavar="FILE", help="the backup")
            p.add_argument("collection", metavar="COLLECTION", help="directory of the collection")
        action.add_arguments(p)
        p.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        p.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def run(args: argparse.Namespace) -> Result:
    return ACTIONS[args.action].run(args)


ACTIONS = {
    "plan": Action(
        plan_arguments,
        plan_action,
        "Estimate the time, disk space and price of embedding all items, from a sample embedded now.",
        "mmtune index plan --model MODEL --data DATA --items 1000000",
    ),
    "build": Action(
        build_arguments,
        build_action,
        "Embed all items into a new version; the live version does not change.",
        "mmtune index build COLLECTION --model runs/a/artifact --data packed/catalog",
    ),
    "adopt": Action(
        adopt_arguments,
        adopt_action,
        "Build the first version from vectors that other software stored in PostgreSQL or Qdrant.",
        "mmtune index adopt COLLECTION --model MODEL --from pgvector --url URL --table items --modality image --data packed/catalog",
    ),
    "embed": Action(
        embed_arguments,
        embed_action,
        "Embed DATA in advance of a build; start it several times, also on several machines, to share the work.",
        "mmtune index embed COLLECTION --model MODEL --data DATA",
    ),
    "search": Action(
        search_arguments,
        search_action,
        "Search for the best items for a text, a file or another item.",
        "mmtune index search COLLECTION --file photo.jpg -k 5",
    ),
    "status": Action(
        no_arguments,
        status_action,
        "Show all versions, their models, item counts and gate results, and which version is live.",
        "mmtune index status COLLECTION",
    ),
    "upsert": Action(
        upsert_arguments,
        upsert_action,
        "Insert or replace items, in all versions.",
        "mmtune index upsert COLLECTION --data packed/new",
    ),
    "delete": Action(
        delete_arguments, delete_action, "Delete items by id, from all versions.", "mmtune index delete COLLECTION ID-1 ID-2"
    ),
    "shadow": Action(
        shadow_arguments,
        shadow_action,
        "Repeat live searches on a version that is not live yet, and report the differences.",
        "mmtune index shadow COLLECTION VERSION --fraction 0.1",
    ),
    "promote": Action(
        promote_arguments,
        promote_action,
        "Make a version live, if it passes the gate and the other checks.",
        "mmtune index promote COLLECTION VERSION --queries packed/test",
    ),
    "rollback": Action(
        rollback_arguments,
        rollback_action,
        "Make the previously live version live again, immediately.",
        'mmtune index rollback COLLECTION --why "complaints"',
    ),
    "journal": Action(
        no_arguments, journal_action, "Show the audit log: who did what, when and why.", "mmtune index journal COLLECTION"
    ),
    "judgments": Action(
        judgments_arguments,
        judgments_action,
        "Export clicks and explicit feedback as relevance judgments, for evaluation and mining.",
        "mmtune index judgments COLLECTION --out feedback",
    ),
    "probe": Action(
        probe_arguments,
        probe_action,
        "Search the live version with known vectors, and compare with exact search; exit 1 if the recall is too low.",
        "mmtune index probe COLLECTION",
    ),
    "health": Action(
        health_arguments,
        health_action,
        "Say whether search is well today, from a month of served searches, probes and clicks; exit 1 if something needs attention.",
        "mmtune index health COLLECTION --out health.html",
    ),
    "drop": Action(drop_arguments, drop_action, "Delete a version that is not live.", "mmtune index drop COLLECTION VERSION"),
    "erase": Action(
        erase_arguments,
        erase_action,
        "Erase an item from all versions, caches and logs, and search every file for what is left of it.",
        'mmtune index erase COLLECTION ITEM --why "request of 3 May"',
    ),
    "backup": Action(
        backup_arguments,
        backup_action,
        "Write a backup of the collection as it is at one moment; other processes may write meanwhile.",
        "mmtune index backup COLLECTION --out shop.tar",
    ),
    "restore": Action(
        add_quiet,
        restore_action,
        "Unpack a backup as a new collection, and fill its tables.",
        "mmtune index restore shop.tar COLLECTION",
    ),
    "clone": Action(
        clone_arguments,
        clone_action,
        "Copy a collection to a new directory, with database tables of its own.",
        "mmtune index clone COLLECTION TARGET",
    ),
    "gc": Action(
        add_quiet,
        gc_action,
        "Remove models, vectors, tables and contents that no version and no item needs.",
        "mmtune index gc COLLECTION",
    ),
    "compact": Action(
        compact_arguments,
        compact_action,
        "Rewrite the stores without deleted and replaced rows, and build their indexes again.",
        "mmtune index compact COLLECTION",
    ),
    "verify": Action(
        add_quiet,
        verify_action,
        "Read every byte of the collection and compare it with its checksums; exit 1 if anything is damaged.",
        "mmtune index verify COLLECTION",
    ),
    "repair": Action(
        add_quiet,
        repair_action,
        "Repair what can be computed again: cached vectors, stores and torn log lines.",
        "mmtune index repair COLLECTION",
    ),
}
