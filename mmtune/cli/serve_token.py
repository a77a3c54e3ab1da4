"""Make, list, rotate and remove the tokens of a server (`mmtune serve COLLECTION --tokens FILE`).

  mmtune serve token add    --file tokens.json --name shop --role search
  mmtune serve token list   --file tokens.json
  mmtune serve token rotate --file tokens.json --name shop          the old token stays valid for a day
  mmtune serve token remove --file tokens.json --name shop          at once

The file has salted hashes; a token is printed once, when it is made. Running servers notice a change of the file at the next
request. Roles, each with what those before it may do: search; feedback (clicks, judgments, the search page); write (PUT and DELETE
of items); admin (/shadow).
"""

import argparse

from mmtune.cli.dispatch import Result
from mmtune.cli.printable import printable

HAS_ACTIONS = True


def arguments(parser: argparse.ArgumentParser) -> None:
    from mmtune.serve.token_file import ROLES

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, text, example in (
        ("add", "Make a token; it is printed once", "--name shop --role search"),
        ("list", "List the tokens with their roles", ""),
        ("rotate", "Replace a token by a new one", "--name shop --overlap 24"),
        ("remove", "Remove a token; it is refused at once", "--name shop"),
    ):
        p = actions.add_parser(
            action,
            help=text[:1].lower() + text[1:],
            description=f"{text}.\n\n  mmtune serve token {action} --file tokens.json {example}".rstrip() + "\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        p.add_argument("--file", required=True, metavar="FILE", help="the token file")
        if action != "list":
            p.add_argument("--name", required=True, metavar="NAME", help="name of the token, for logs")
        if action == "add":
            p.add_argument("--role", default="search", choices=ROLES, help="what the token may do (default search)")
            p.add_argument("--days", type=float, metavar="N", help="days after which the token expires (default: never)")
        if action == "rotate":
            p.add_argument(
                "--overlap",
                type=float,
                default=24.0,
                metavar="H",
                help="hours for which the old token stays valid (default 24)",
            )
        p.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document")
        p.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error")


def run(args: argparse.Namespace) -> Result:
    from dataclasses import asdict

    from mmtune.serve.token_admin import add_token, list_tokens, remove_token, rotate_token

    if args.action in ("add", "rotate"):
        if args.action == "add":
            made = add_token(args.file, args.name, args.role, args.days)
        else:
            made = rotate_token(args.file, args.name, args.overlap)
        return Result(asdict(made), made.token)
    if args.action == "remove":
        count = remove_token(args.file, args.name)
        return Result({"removed": count}, f"removed {count} token{'s' * (count != 1)}")
    tokens = list_tokens(args.file)
    lines = [f"{t.id}  {t.role:<8}  {t.expires or 'never expires':<25}  {printable(t.name)}" for t in tokens]
    return Result({"tokens": [asdict(t) for t in tokens]}, "\n".join(lines) or "no tokens")
