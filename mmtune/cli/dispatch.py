"""Runs one verb: parses, calls, prints, and turns errors into one line and an exit status."""

import argparse
import contextlib
import difflib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from mmtune.cli.verbs import VERBS
from mmtune.contracts import JsonObject
from mmtune.errors import MmtuneError


@dataclass
class Result:
    """What a verb returns: the JSON document for --json, the text to print otherwise, and the exit status."""

    document: JsonObject
    text: str = ""
    status: int = 0


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Print warnings, e.g. of a renamed recipe key, as one line on standard error, without their source."""

    def show(message: Warning | str, *_: object) -> None:
        print(f"mmtune: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]  # the further parameters are not needed
        yield


RENAMED_OPTIONS = {
    "compare": {"--general": "--retention"},
    "eval": {
        "--apart": "--exclude-same",
        "--by": "--machine",
        "--names": "--class-names",
        "--train": "--reference",
        "--views": "--group-pooling",
    },
    "index": {"--general": "--retention", "--per": "--group-by", "--short": "--search-dim"},
    "report": {"--general": "--retention"},
}
"""Verb -> old spelling of an option -> the present one. The old ones are read, and not shown in the help."""


def _present_options(verb: str, argv: list[str]) -> list[str]:
    """`argv` with renamed options by their present names; one line on standard error for each."""
    renamed, present = RENAMED_OPTIONS.get(verb, {}), []
    for argument in argv:
        option, equals, value = argument.partition("=")
        if option in renamed:
            print(f"mmtune {verb}: {option} is called {renamed[option]} now", file=sys.stderr)
            option = renamed[option]
        present.append(f"{option}{equals}{value}")
    return present


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def dispatch(verb: str, argv: list[str]) -> int:
    """Run `verb` with `argv`; returns the exit status."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see mmtune --help"
        print(f"mmtune: no verb {verb!r}; {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"mmtune.cli.{verb}_verb")
    parser = Parser(prog=f"mmtune {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    try:
        parse = parser.parse_args if getattr(module, "HAS_ACTIONS", False) else parser.parse_intermixed_args
        args = parse(_present_options(verb, argv))
    except SystemExit as e:
        return int(e.code or 0)
    try:
        with _one_line_warnings():
            result: Result = module.run(args)
        print(json.dumps(result.document) if args.json else result.text.rstrip("\n"), flush=True)
        return result.status
    except BrokenPipeError:  # the reader closed the pipe (`| head`): Python must not print an error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"mmtune {verb}: stopped by Ctrl-C; run the same command again to continue", file=sys.stderr)
        return 130
    except (MmtuneError, OSError) as e:
        if args.debug:
            raise
        print(f"mmtune {verb}: {e}", file=sys.stderr)
        return 2
