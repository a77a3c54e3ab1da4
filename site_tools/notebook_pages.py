"""Notebooks as pages of the site: their Markdown, code, and outputs (text, tables, pictures, players)."""

import base64
import json
import re
from pathlib import Path


def pages(folder: Path) -> dict[str, str | bytes]:
    """Return {path in the site: content} of the page, the pictures and the .ipynb of every notebook in `folder`."""
    found: dict[str, str | bytes] = {}
    for notebook in sorted(folder.glob("*.ipynb")):
        found |= page_of(notebook)
        found[f"notebooks/{notebook.name}"] = notebook.read_bytes()
    return found


def page_of(notebook: Path) -> dict[str, str | bytes]:
    """Return the page of one notebook and its media files."""
    name = notebook.stem
    files: dict[str, str | bytes] = {}
    parts: list[str] = []
    for cell in json.loads(notebook.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            parts.append(shown(output, name, files))
    first, *rest = parts
    download = f"[The notebook]({name}.ipynb) and [the script](https://jupytext.readthedocs.io) that makes it are in `notebooks/{name}.py`."
    download = f"This page is [`notebooks/{name}.ipynb`]({name}.ipynb) with its outputs; it is made of `notebooks/{name}.py`."
    files[f"notebooks/{name}.md"] = "\n\n".join([first, download, *(p for p in rest if p)]) + "\n"
    return files


def shown(output: dict, name: str, files: dict[str, str | bytes]) -> str:
    """Return an output as Markdown, and add its picture or sound to `files`."""
    if output["output_type"] == "stream":
        return block("".join(output["text"]))
    data = output.get("data", {})
    if "image/png" in data:
        return f"![Output of the cell above]({stored(base64.b64decode(data['image/png']), name, 'png', files)})"
    if "text/html" in data:
        return html("".join(data["text/html"]), name, files)
    return block("".join(data.get("text/plain", "")))


def stored(content: bytes, name: str, ending: str, files: dict[str, str | bytes]) -> str:
    """Add a media file; returns its path relative to the page."""
    path = f"{name}_files/{sum(f.startswith(f'notebooks/{name}_files/') for f in files)}.{ending}"
    files[f"notebooks/{path}"] = content
    return path


def html(text: str, name: str, files: dict[str, str | bytes]) -> str:
    """Return HTML in one block, its sounds as files. Markdown would end the block at an empty line."""

    def file_of(match: re.Match[str]) -> str:
        return f'src="{stored(base64.b64decode(match[2]), name, "wav" if "wav" in match[1] else match[1], files)}"'

    text = re.sub(r'src="data:audio/([\w-]+);base64,([^"]+)"', file_of, text)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)
    return '<div class="output">\n' + re.sub(r"\n\s*\n", "\n", text.strip()) + "\n</div>"


def block(text: str) -> str:
    """Return text as a code block, in full if it is short."""
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
