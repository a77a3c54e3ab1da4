"""Make text from data safe for a terminal: control characters are shown as escapes, and never sent to it."""

import unicodedata

UNSAFE = {"Cc", "Cf", "Zl", "Zp", "Cs"}
"""Unicode categories of control, format (also the ones that reverse the direction of text) and line-separating characters."""
JOINERS = {"\u200c", "\u200d"}
"""Format characters that scripts and emoji need, and that do nothing to a terminal."""


def printable(text: object, *, lines: bool = False) -> str:
    """Return `text` with every character that could control a terminal or forge a line escaped, e.g. ESC as \\x1b.

    lines: keep newlines and tabs; for text of several lines whose values were made printable before.
    """
    string = str(text)
    if string.isascii() and string.isprintable():
        return string
    kept = {"\n", "\t", *JOINERS} if lines else JOINERS
    return "".join(c if c in kept or unicodedata.category(c) not in UNSAFE else _escape(c) for c in string)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
