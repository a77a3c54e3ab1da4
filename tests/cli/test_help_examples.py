"""Every `mmtune VERB --help` shows an example, and every option in it exists."""

import argparse
import importlib
import re

import pytest

from mmtune.cli import VERBS


def parser_of(verb):
    module = importlib.import_module(f"mmtune.cli.{verb}_verb")
    parser = argparse.ArgumentParser(prog=f"mmtune {verb}", description=module.__doc__)
    module.arguments(parser)
    parser.add_argument("--json", action="store_true")
    return parser


def options(parser):
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= options(inner)
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_whose_options_exist(verb):
    parser = parser_of(verb)
    lines = [line.strip() for line in (parser.description or "").split("\n")]
    examples = [line for line in lines if re.match(rf"mmtune {verb}\b", line)]
    assert examples, f"mmtune {verb} --help has no example"
    known = options(parser)
    for line in examples:
        own = line.partition(";")[0].partition("   ")[0].partition("#")[0]
        used = re.findall(r"(?<!\S)(--[a-z][\w-]*)", own)
        assert not [o for o in used if o not in known], line
