"""Docstrings of this project as Markdown: a line `name: meaning` about a parameter or attribute becomes a list item.

As a griffe extension it prepares the docstrings for mkdocstrings; `api_markdown` writes the same page as plain Markdown.
"""

import importlib
import inspect
import re

import griffe

ITEM = re.compile(r"^( *)([a-z_]\w*(?:, [a-z_]\w*)*): (.*)$")


def as_markdown(docstring: str) -> str:
    """Return a docstring as Markdown. Lines of an item that go on are indented deeper than its first."""
    out: list[str] = []
    indent = -1
    for line in inspect.cleandoc(docstring).split("\n"):
        item = ITEM.match(line)
        depth = len(line) - len(line.lstrip())
        if item and not (out and out[-1] and indent < 0 and not out[-1].endswith(":")):
            if indent < 0 and out and out[-1]:
                out.append("")
            indent = depth
            names = ", ".join(f"`{n}`" for n in item[2].split(", "))
            out.append(f"- {names}: {item[3]}")
        elif indent >= 0 and line and depth > indent:
            out.append(f"    {line.strip()}")
        else:
            if indent >= 0 and line:
                out.append("")
            indent = -1
            out.append(line.strip() if depth and not line.startswith("    ") else line)
    return "\n".join(out)


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring that is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: object) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)


def api_markdown(page: str) -> str:
    """Return a page with its `::: NAME` lines replaced by signatures and docstrings."""

    def replaced(match: re.Match[str]) -> str:
        return "\n".join(section(match[1], 3))

    return re.sub(r"^::: ([\w.]+)(?:\n(?:    .*)?)*$", replaced, page, flags=re.M)


def section(name: str, level: int) -> list[str]:
    """Return the lines about a function, or a class with its public methods."""
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    owner = attribute
    out = [f"{'#' * level} {name}", ""]
    if not inspect.isclass(value):
        return [*out, *signature(owner, value), as_markdown(inspect.getdoc(value) or ""), ""]
    out += [as_markdown(inspect.getdoc(value) or ""), ""]
    for key, member in vars(value).items():
        if key.startswith("_") or not inspect.isfunction(member) or not inspect.getdoc(member):
            continue
        out += [
            f"{'#' * (level + 1)} {owner}.{key}",
            "",
            *signature(key, member),
            as_markdown(inspect.getdoc(member) or ""),
            "",
        ]
    return out


def signature(name: str, function: object) -> list[str]:
    """Return a code block with the function's signature."""
    shown = str(inspect.signature(function)).replace("'", "").replace('"', "")  # type: ignore[arg-type]
    return ["```python", f"{name}{shown}", "```", ""]
