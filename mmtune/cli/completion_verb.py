"""Print a script that lets a shell complete verbs, options, choices and file names after `mmtune`.

  mmtune completion bash > ~/.local/share/bash-completion/completions/mmtune
  mmtune completion zsh > ~/.zfunc/_mmtune          with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc
  mmtune completion fish > ~/.config/fish/completions/mmtune.fish

Open a new shell afterwards. The script is complete in itself: pressing TAB does not start mmtune. Print it again after an update.
"""

import argparse

from mmtune.cli.dispatch import Parser, Result, module_name
from mmtune.cli.verbs import VERBS
from mmtune.errors import MissingExtra

SHELLS = ("bash", "zsh", "fish")
DIRECTORIES = {"COLLECTION", "DIR", "RUN", "TARGET"}
"""Metavars of arguments whose values are directories. The other arguments without choices complete the names of files."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell to print the script for")


def run(args: argparse.Namespace) -> Result:
    script = completion_script(args.shell)
    return Result({"shell": args.shell, "script": script}, script)


def completion_script(shell: str) -> str:
    """Return the completion script of a shell of SHELLS, made by shtab from the parsers of all verbs. Raises MissingExtra without shtab."""
    try:
        import shtab
    except ImportError:
        raise MissingExtra('mmtune completion needs shtab: pip install "mmtune[completion]"') from None
    return str(shtab.complete(whole_parser(), shell=shell))


def whole_parser() -> Parser:
    """Return one parser with all verbs as sub-commands; `dispatch` makes the parser of the requested verb alone."""
    import importlib

    root = Parser(prog="mmtune")
    verbs = root.add_subparsers(dest="verb")
    for verb, text in VERBS.items():
        parser = verbs.add_parser(verb, help=text)
        importlib.import_module(module_name(verb)).arguments(parser)
        parser.add_argument("--json", action="store_true", help="print one JSON document on standard output")
        parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
        _complete_file_names(parser)
    return root


def _complete_file_names(parser: argparse.ArgumentParser) -> None:
    """Mark the arguments of a parser and of its actions that take text, so that the shell offers names of files for them."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in dict.fromkeys(action.choices.values()):
                _complete_file_names(child)
        elif action.choices is None and action.nargs != 0 and action.type is None:
            action.complete = shtab.DIRECTORY if action.metavar in DIRECTORIES else shtab.FILE  # type: ignore[attr-defined]  # read by shtab
