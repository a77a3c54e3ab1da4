"""Every message that docs/troubleshooting.md quotes is one that the code can print."""

import ast
import re
from pathlib import Path

import pytest

from tests.support.docs_helpers import ROOT, blocks

PAGE = ROOT / "docs" / "troubleshooting.md"
MESSAGES = [line for b in blocks(PAGE) if b.language == "text" for line in b.code.splitlines()]


def strings_of(path: Path) -> list[str]:
    """The strings of a module; a value in an f-string is a gap, as "..." is one on the page."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


@pytest.fixture(scope="module")
def strings() -> str:
    return "\n".join(s for path in sorted((ROOT / "mmtune").rglob("*.py")) for s in strings_of(path))


@pytest.mark.parametrize("message", MESSAGES)
def test_the_message_is_one_of_the_code(message: str, strings: str) -> None:
    parts = [p.strip() for p in message.split("...") if len(p.strip()) > 3]
    assert parts and max(map(len, parts)) >= 10, "quote more of the message"
    for part in parts:
        assert part in strings, part


def test_there_are_messages() -> None:
    assert len(MESSAGES) >= 30 and len(set(MESSAGES)) == len(MESSAGES)
    assert not re.search(r"\.\.\.\.", PAGE.read_text())
