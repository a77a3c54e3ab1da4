"""Markdown as docs/ has it -> Markdown as MkDocs needs it, plain copies of the pages, and llms.txt."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+)?[ ]*(?P<note>[^\n]*)$")


@dataclass(frozen=True)
class Line:
    """A line of a page; in_code: whether it is a fence or stands between two."""

    content: str
    in_code: bool


def lines_of(text: str) -> Iterator[Line]:
    """Yield the lines of a page, without the notes that tests read behind the language of a code block."""
    inside = False
    for line in text.split("\n"):
        fence = FENCE.match(line)
        if fence:
            note = fence["note"] if not inside else ""
            language = fence["language"] or ""
            title = f' title="{note.removeprefix("file: ")}"' if note.startswith("file: ") else ""
            yield Line(f"{fence['indent']}```{language}{title}", True)
            inside = not inside
        else:
            yield Line(line, inside)


def for_mkdocs(text: str) -> str:
    """Return the page as Python-Markdown reads it like GitHub: an empty line before lists and tables, nested items indented by 4."""
    done: list[str] = []
    for line in lines_of(text):
        content = line.content
        if not line.in_code:
            item = re.match(r"^( *)(-|\d+\.) ", content)
            above = done[-1] if done else ""
            starts_block = bool(item) or content.startswith("|")
            goes_on = re.match(r"^ *(-|\d+\.) |^ +\S|^\||^$", above)
            if starts_block and not goes_on:
                done.append("")
            if re.match(r"^ {2,3}\S", content):  # inside a list item: GitHub takes 2 or 3 spaces, Python-Markdown 4
                content = "    " + content.lstrip()
        done.append(content)
    return "\n".join(done)


def plain(text: str) -> str:
    """Return the page for reading as plain Markdown: as it is, without the notes for tests."""
    return "\n".join(line.content for line in lines_of(text))


def title_of(text: str) -> str:
    """Return the first heading of a page."""
    found = re.search(r"^# (.+)$", text, re.M)
    return found[1].strip() if found else ""


def summary_of(text: str) -> str:
    """Return the first sentence after the first heading."""
    paragraphs = re.split(r"\n\s*\n", text.split("\n# ", 1)[-1])
    for paragraph in paragraphs[1:]:
        flat = " ".join(paragraph.split())
        if flat and flat[0] not in "#|`!<-{:":
            flat = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", flat)
            return re.split(r"(?<=[.:])\s", flat)[0].rstrip(":")
    return ""


def llms_txt(name: str, purpose: str, pages: list[tuple[str, str, str]]) -> str:
    """Return llms.txt (llmstxt.org). pages: (section, path of the Markdown copy, its text) in the order of the navigation."""
    out, section = [f"# {name}", "", f"> {purpose}"], ""
    for group, path, text in pages:
        if group != section:
            out += ["", f"## {group}", ""]
            section = group
        out.append(f"- [{title_of(text)}]({path}): {summary_of(text)}")
    return "\n".join(out) + "\n"


def llms_full_txt(pages: list[tuple[str, str, str]]) -> str:
    """Return all pages as one Markdown text."""
    return "\n\n".join(f"<!-- {path} -->\n\n{text.strip()}" for _, path, text in pages) + "\n"
