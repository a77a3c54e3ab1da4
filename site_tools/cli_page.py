"""Generate docs/cli.md, the reference of the command line, from the parsers: `python -m site_tools.cli_page > docs/cli.md`."""

import argparse
import itertools
import re
import textwrap
from collections.abc import Iterator

from mmtune.cli.dispatch import SUBVERBS, Parser, parser_of
from mmtune.cli.verbs import VERBS

HEAD = """# Command line

All verbs with their arguments, as `mmtune VERB --help` prints them. Every verb takes `--json` (one JSON document on standard output) and
`--debug` (tracebacks), and exits with 0 when done, 1 when the answer is no (a refused gate, problems found), 2 on bad input, and 130 when it
was stopped by Ctrl-C or a signal. Progress and messages are on standard error.

MODEL is an artifact, `hf:NAME_OR_DIR`, `open_clip:NAME/TAG_OR_DIR`, `timm:NAME`, `st:NAME`, or one encoder per modality
([your data](your_data.md#model)). DATA is packed shards: a directory, a tar, a brace pattern, or a URL of one of these.

This page is generated: `python -m site_tools.cli_page > docs/cli.md`.
"""
EVERYWHERE = {"--help", "--json", "--debug"}
"""Options that every verb has; the head of the page explains them."""


def cli_page() -> str:
    """Return the content of docs/cli.md."""
    parts = [HEAD, "| verb | what it does |\n|---|---|"]
    parts[-1] += "".join(f"\n| [`{verb}`](#mmtune-{verb}) | {text} |" for verb, text in VERBS.items()) + "\n"
    for verb in VERBS:
        parts += sections(parser_of(verb), 2)
        for first, second in SUBVERBS:
            if first == verb:
                parts += sections(parser_of(f"{first} {second}"), 3)
    return "\n".join(parts)


def sections(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    """Yield the section of a parser and those of its actions (sub-commands)."""
    yield f"{'#' * level} {parser.prog}\n"
    yield description(parser.description or "")
    rows = list(argument_rows(parser))
    if rows:
        yield "| argument | meaning |\n|---|---|\n" + "\n".join(rows) + "\n"
    for child in children(parser):
        yield from sections(child, level + 1)


def children(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Return the parsers of the sub-commands."""
    actions = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return [p for a in actions for p in dict.fromkeys(a.choices.values()) if isinstance(p, Parser)]


def description(text: str) -> str:
    """Return a help text as Markdown. Indented lines and lines that are commands become code blocks, the others paragraphs."""
    parts: list[str] = []
    for is_code, run in itertools.groupby(text.strip("\n").split("\n"), key=lambda x: x.startswith(("  ", "mmtune "))):
        lines = [line.rstrip() for line in run]
        if is_code:
            parts.append("```text\n" + textwrap.dedent("\n".join(lines)) + "\n```\n")
        elif any(lines):
            parts.append(escaped("\n".join(lines).strip("\n")) + "\n")
    return "\n".join(parts)


def argument_rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield a table row for each argument but those that every verb has."""
    for action in parser._actions:
        hidden = action.help == argparse.SUPPRESS or isinstance(action, argparse._SubParsersAction)
        if hidden or EVERYWHERE & set(action.option_strings):
            continue
        meaning = (
            (action.help or "") % {**vars(action), "prog": parser.prog} if "%" in (action.help or "") else action.help or ""
        )
        meaning = re.sub(r"default here: \d+", "default: by the number of cores", meaning)
        if action.required and action.option_strings:
            meaning += " (required)"
        yield f"| {name_of(action)} | {cell(meaning)} |"


def name_of(action: argparse.Action) -> str:
    """Return how the argument is written, e.g. `--k 1,5,10` or `DATA`."""
    metavar = action.metavar
    if metavar is None and action.choices:
        metavar = ", ".join(map(str, action.choices))
    if metavar is None:
        metavar = action.dest.upper() if action.option_strings else action.dest
    value = " ".join(metavar) if isinstance(metavar, tuple) else str(metavar)
    many = " ..." if action.nargs in ("*", "+") else ""
    if not action.option_strings:
        return f"`{value}{many}`"
    return f"`{', '.join(action.option_strings)}{'' if action.nargs == 0 else ' ' + value + many}`".replace("|", "\\|")


def escaped(text: str) -> str:
    """Return text in which HTML and emphasis signs show as they are."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([<>*_\[\]])", r"\\\1", p) for p in parts)


def cell(text: str) -> str:
    """Return text as one table cell."""
    return escaped(" ".join(text.split())).replace("|", "\\|")


if __name__ == "__main__":
    print(cli_page(), end="")
