"""The documentation site: generated pages are current, every page is in the navigation, it builds strictly, and a browser shows it."""

import functools
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
import yaml

from site_tools import cli_page, install_table, markdown_pages
from site_tools.docstrings import as_markdown
from tests.support.browser import chromium
from tests.support.docs_helpers import ROOT

GENERATED = {"changelog.md", "contributing.md"}


class Loader(yaml.SafeLoader):
    """mkdocs.yml has a tag of Python, which is of no interest here."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def navigation() -> list[str]:
    """The pages of mkdocs.yml in order."""
    found: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, str):
            found.append(node)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    return found


def test_every_page_and_notebook_is_in_the_navigation() -> None:
    """If not: add it to `nav` in mkdocs.yml."""
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")} | GENERATED
    pages |= {f"notebooks/{p.stem}.md" for p in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(navigation()) == pages and len(navigation()) == len(pages)


def test_the_page_of_the_command_line_is_current() -> None:
    """If not: python -m site_tools.cli_page > docs/cli.md"""
    assert (ROOT / "docs" / "cli.md").read_text() == cli_page.cli_page()


def test_the_page_of_the_command_line_has_every_verb_and_action() -> None:
    from mmtune.cli.verbs import VERBS

    text = cli_page.cli_page()
    assert all(f"\n## mmtune {verb}\n" in text for verb in VERBS)
    assert "\n### mmtune index promote\n" in text and "| `--min-recall" in text


def test_the_table_of_extras_is_current() -> None:
    """If not: add what it gives to site_tools/install_table.py, then python -m site_tools.install_table"""
    assert set(install_table.GIVES) == set(install_table.extras())
    page = install_table.PAGE.read_text()
    assert install_table.with_table(page) == page


def test_the_api_page_has_every_public_name() -> None:
    import mmtune

    named = re.findall(r"^::: mmtune\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert sorted(named) == sorted(n for n in mmtune.__all__ if n != "__version__")


def test_markdown_for_mkdocs() -> None:
    page = "# T\n\nSteps:\n- one\n  more\n  - inner\n- two\n| a |\n```sh skip: no network\nx - y\n- z\n```\n```python file: a.py\n1\n```"
    lines = markdown_pages.for_mkdocs(page).split("\n")
    assert lines[2:6] == ["Steps:", "", "- one", "    more"] and "    - inner" in lines
    assert "```sh" in lines and "- z" in lines and '```python title="a.py"' in lines
    assert markdown_pages.summary_of(page) == "Steps" and markdown_pages.title_of(page) == "T"


def test_docstrings_as_markdown() -> None:
    text = as_markdown("Do it.\n\na: first\n    goes on\nb, c: others\n\nRaises E if not.")
    assert text == "Do it.\n\n- `a`: first\n    goes on\n- `b`, `c`: others\n\nRaises E if not."


# --- the built site --------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Links, pictures and ids of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {v for k in ("id", "name") if (v := found.get(k))}
        for key in ("href", "src"):
            if value := found.get(key):
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site. Warnings are errors."""
    pytest.importorskip("mkdocs", reason='needs pip install -e ".[docs]"')
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    out = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return out


@pytest.mark.slow
def test_no_link_is_broken_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = {p: Page(p) for p in site.rglob("*.html") if p.name != "404.html"}
    assert len(pages) == len(navigation())
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            target, anchor = urldefrag(unquote(link))
            if re.match(r"(https?|mailto|data|javascript):", link):
                continue
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path.name}: {link}"
            if anchor and file in pages:
                assert anchor in pages[file].ids, f"{path.name}: {link}"
            checked += 1
    assert checked > 1000
    for text in (p.read_text() for p in pages):
        assert not re.search(r'<(script|link|img)[^>]+(src|href)="https?://', text)


@pytest.mark.slow
def test_plain_copies_and_llms_txt(site: Path) -> None:
    index = (site / "llms.txt").read_text()
    assert index.startswith("# mmtune\n\n> ")
    listed = re.findall(r"\]\(([^)]+)\)", index)
    assert listed == navigation()
    full = (site / "llms-full.txt").read_text()
    for path in listed:
        plain = (site / path).read_text()
        assert plain.strip() in full
        assert not re.search(r"^ *```\w* *(skip|file): ", plain, re.M), path
        assert "::: " not in plain
    assert "encode(self" in (site / "api.md").read_text()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site, served on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def html(path: str) -> str:
    return path.removesuffix(".md") + ".html"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with chromium() as launched:
        yield launched


@pytest.mark.slow
def test_a_browser_shows_every_page_at_both_widths(address: str, browser) -> None:
    """No script fails, every picture is loaded, nothing outside is asked, and no page scrolls sideways."""
    for width, height in ((1300, 900), (390, 844)):
        page, errors, outside = browser.new_page(viewport={"width": width, "height": height}), [], []
        page.on("pageerror", lambda e, errors=errors: errors.append(str(e)))
        page.on(
            "request",
            lambda r, outside=outside: outside.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else None,
        )
        pictures = 0
        for path in navigation():
            page.goto(address + html(path))
            broken = page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
            pictures += page.evaluate("document.images.length")
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert not broken and wide <= 1, f"{path} at {width}: {broken} {wide}"
            assert page.locator("article h1").count() == 1, path
        assert not errors and not outside and pictures >= 20
        page.close()


@pytest.mark.slow
def test_lists_and_code_are_rendered(address: str, browser) -> None:
    """What Python-Markdown reads differently from GitHub would show as a dash or a fence within a paragraph."""
    page = browser.new_page()
    for path in navigation():
        page.goto(address + html(path))
        raw = page.evaluate(
            "[...document.querySelectorAll('article p')].map(p => p.innerText).filter(t => /^(- |\\||```)|\\n(- |\\||```)/.test(t))"
        )
        assert not raw, f"{path}: {raw[:2]}"
    page.close()


@pytest.mark.slow
def test_the_search_finds_pages(address: str, browser) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(address + "index.html")
    page.locator(".md-search__input").click()
    page.keyboard.type("rollback")
    result = page.locator(".md-search-result__item a[href*='shipping.html']").first
    result.wait_for(timeout=60_000)
    result.click()
    page.wait_for_url("**/shipping.html**")
    page.close()
