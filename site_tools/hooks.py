"""Hooks of mkdocs.yml: pages from outside docs/, the notebooks, plain Markdown copies, llms.txt and llms-full.txt."""

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from mkdocs.structure.files import File  # noqa: E402

from site_tools import docstrings, markdown_pages, notebook_pages  # noqa: E402

FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
"""Page of the site -> file of the repository that it shows."""

_plain: dict[str, str] = {}
"""Page -> its text for the plain copy."""


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that docs/ does not have."""
    for page, source in FROM_ROOT.items():
        content = (ROOT / source).read_text().replace("](docs/", "](").replace("](CHANGELOG.md", "](changelog.md")
        files.append(File.generated(config, page, content=content))
    for path, content in notebook_pages.pages(ROOT / "notebooks").items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Remember the page for its plain copy, and return what Python-Markdown needs."""
    markdown = markdown.replace("](../CHANGELOG.md", "](changelog.md").replace("](../CONTRIBUTING.md", "](contributing.md")
    markdown = re.sub(r"\]\(\.\./(notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)
    text = docstrings.api_markdown(markdown) if "\n::: " in markdown else markdown
    _plain[page.file.src_uri] = markdown_pages.plain(text)
    return markdown_pages.for_mkdocs(markdown)


def on_nav(nav: Any, config: Any, files: Any) -> Any:
    """Keep the order of the navigation for llms.txt."""
    _order.clear()
    for item in nav.items:
        for page in item.children if item.is_section else [item]:
            _order.append((item.title if item.is_section else "Start", page.file.src_uri))
    return nav


_order: list[tuple[str, str]] = []
"""(section, page) in the order of the navigation."""


def on_post_build(config: Any) -> None:
    """Write every page's plain copy beside it, llms.txt and llms-full.txt."""
    site = Path(config.site_dir)
    for path, text in _plain.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    listed = [(section, path, _plain[path]) for section, path in _order]
    (site / "llms.txt").write_text(markdown_pages.llms_txt(config.site_name, config.site_description, listed))
    (site / "llms-full.txt").write_text(markdown_pages.llms_full_txt(listed))
