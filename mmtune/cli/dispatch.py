"""Run one verb: parse its arguments, call it, print its result, and turn errors into one line and an exit status."""

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

from mmtune.cli.printable import printable
from mmtune.cli.verbs import VERBS
from mmtune.contracts import JsonObject
from mmtune.errors import DataError, MmtuneError
from mmtune.runtime.deprecation import renamed_message
from mmtune.runtime.files import is_disk_full, refuse_url


@dataclass
class Result:
    """The result of a verb.

    document: the JSON document to print with --json.
    text: the text to print otherwise.
    status: the exit status.
    """

    document: JsonObject
    text: str = ""
    status: int = 0


def add_quiet(parser: argparse.ArgumentParser) -> None:
    """Add the option --quiet, which every verb and action has that shows progress."""
    parser.add_argument("--quiet", action="store_true", help="show no progress")


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Context manager: print warnings in one line on standard error, without the source line that Python adds."""

    def show(message: Warning | str, *_: object) -> None:
        print(f"mmtune: {printable(message)}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]  # `show` ignores the other parameters
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
"""{verb: {old name of an option: new name}}. Old names still work, but the help does not show them."""


def _replace_renamed_options(verb: str, argv: list[str]) -> list[str]:
    """Return `argv` with the new names of renamed options. Prints a notice on standard error for each."""
    renamed, replaced = RENAMED_OPTIONS.get(verb, {}), []
    for argument in argv:
        option, equals, value = argument.partition("=")
        if option in renamed:
            print(f"mmtune {verb}: {renamed_message(option, renamed[option])}", file=sys.stderr)
            option = renamed[option]
        replaced.append(f"{option}{equals}{value}")
    return replaced


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


SUBVERBS = {("serve", "token"): "serve_token"}
"""{(verb, its first argument): module of its own}."""


def module_name(verb: str) -> str:
    """Return the module of a verb ("train") or of a sub-verb with a module of its own ("serve token")."""
    first, _, second = verb.partition(" ")
    return f"mmtune.cli.{SUBVERBS[first, second] if second else f'{first}_verb'}"


def parser_of(verb: str) -> Parser:
    """Build the parser of a verb of `VERBS`, or of "VERB SUBVERB"."""
    module = importlib.import_module(module_name(verb))
    parser = Parser(prog=f"mmtune {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    module.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _check_data_paths(parser: Parser, args: argparse.Namespace) -> None:
    """Raise DataError for a DATA argument that is no file or directory, before the verb imports its libraries, which takes seconds.

    Arguments that may be more than a local path (URLs, brace patterns, names) are left to the verb. Likewise for a URL as --out.
    """
    refuse_url(getattr(args, "out", None) or "", "--out")
    for action in parser._actions:
        given = getattr(args, action.dest, None) if action.metavar == "DATA" else None
        for path in given if isinstance(given, list) else [given]:
            if isinstance(path, str) and os.sep in path and not set(path) & set("{}[]*?:,=") and not os.path.exists(path):
                raise DataError(f"{os.path.abspath(path)}: no such file or directory")


def dispatch(verb: str, argv: list[str]) -> int:
    """Run `verb` with the arguments `argv` and return the exit status."""
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1)
        hint = f"did you mean {near[0]!r}?" if near else "see mmtune --help"
        print(f"mmtune: no verb {verb!r}; {hint}", file=sys.stderr)
        return 2
    if argv and (verb, argv[0]) in SUBVERBS:
        verb, argv = f"{verb} {argv[0]}", argv[1:]
    module, parser = importlib.import_module(module_name(verb)), parser_of(verb)
    try:
        parse = parser.parse_args if getattr(module, "HAS_ACTIONS", False) else parser.parse_intermixed_args
        args = parse(_replace_renamed_options(verb, argv))
    except SystemExit as e:
        return int(e.code or 0)
    try:
        _check_data_paths(parser, args)
        with _one_line_warnings():
            result: Result = module.run(args)
        print(json.dumps(result.document) if args.json else printable(result.text.rstrip("\n"), lines=True), flush=True)
        return result.status
    except BrokenPipeError:  # the reader closed the pipe (`| head`); redirect, so that Python prints no error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"mmtune {verb}: stopped by Ctrl-C; run the same command again to continue", file=sys.stderr)
        return 130
    except Exception as e:
        full = is_disk_full(e)
        if args.debug or not (full or isinstance(e, MmtuneError | OSError)):
            raise
        path = f" ({e.filename})" if isinstance(e, OSError) and e.filename else ""
        line = f"no space left on the disk{path}; free some, and run the same command again" if full else str(e)
        print(f"mmtune {verb}: {printable(line, lines=True)}", file=sys.stderr)
        return 2
