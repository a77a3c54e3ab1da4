"""Every command and every Python block of README.md and docs/ runs as it stands, in the order of its page.

A block says behind its language when it does not ("skip: REASON"), that its commands may also exit with 1 ("exit 0 or 1"), or
that it is a file of the reader's ("file: NAME.py").
The only substitution is the public checkpoints, for which small ones of the same architecture stand in.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mmtune
from mmtune import modalities
from mmtune.cli import main
from mmtune.evaluation import METRICS
from mmtune.evaluation.tasks.anomaly_scorers import SCORERS
from tests.support.docs_helpers import (
    ROOT,
    Block,
    blocks,
    commands,
    pages,
    stand_ins,
    substitute,
    write_files_of_other_tools,
    write_tables,
)

FRESH = {"README.md", "docs/your_data.md", "docs/index.md"}
"""Pages that begin with the reader's tables; the others go on where README.md ends."""
FAST = {"README.md", "docs/extending.md", "docs/python_api.md"}
RUNNABLE = ("sh", "python")


def runnable(page: Path) -> list[Block]:
    return [b for b in blocks(page) if b.language in RUNNABLE and not b.skipped]


PAGES = [p for p in pages() if runnable(p)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{public checkpoint: its stand-in}."""
    return stand_ins(tmp_path_factory.mktemp("docs"))


@pytest.fixture
def restored_tables() -> Iterator[None]:
    """What a page registers is forgotten afterwards."""
    before = [(table, dict(table)) for table in (METRICS, SCORERS, modalities.TABLE)]
    yield
    for table, entries in before:
        table.clear()
        table.update(entries)


def run_page(page: Path, folder: Path, checkpoint: dict[str, str]) -> int:
    """Run the page's blocks in `folder`; returns how many commands and Python blocks that were."""
    count, namespace = 0, {"__name__": "docs"}
    for block in runnable(page):
        where = f"{block.page}:{block.line}"
        if block.note.startswith("file: "):
            (folder / block.note.removeprefix("file: ")).write_text(block.code)
            count += 1
            continue
        if block.language == "python":
            exec(compile(substitute(block.code, checkpoint), where, "exec"), namespace)
            count += 1
            continue
        allowed = (0, 1) if block.note == "exit 0 or 1" else (0,)
        for command in commands(block):
            assert command[0] == "mmtune", f"{where}: {command[0]} cannot run here; say skip: REASON behind ```sh"
            status = main([substitute(word, checkpoint) for word in command[1:]])
            assert status in allowed, f"{where}: {' '.join(command)} exits with {status}"
            count += 1
    return count


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory, checkpoint: dict[str, str]) -> tuple[Path, int]:
    """(a folder in which README.md has been followed, how many blocks ran)."""
    folder = tmp_path_factory.mktemp("docs") / "reader"
    folder.mkdir()
    write_tables(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return folder, run_page(ROOT / "README.md", folder, checkpoint)


@pytest.mark.parametrize(
    "page", [pytest.param(p, marks=() if name_of(p) in FAST else pytest.mark.slow) for p in PAGES], ids=name_of
)
def test_the_page_runs(
    page: Path,
    after_readme: tuple[Path, int],
    checkpoint: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    restored_tables: None,
) -> None:
    if name_of(page) == "README.md":
        assert after_readme[1] >= 8
        return
    folder = tmp_path / "reader"
    if name_of(page) in FRESH:
        folder.mkdir()
        write_tables(folder)
    else:
        shutil.copytree(after_readme[0], folder, symlinks=True)
    if name_of(page).startswith("docs/from_"):
        write_files_of_other_tools(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    assert run_page(page, folder, checkpoint) > 0


def test_there_are_pages_and_blocks() -> None:
    found = [b for p in PAGES for b in runnable(p)]
    assert len(PAGES) >= 14 and len(found) >= 60
    assert sum(len(list(commands(b))) for b in found if b.language == "sh") >= 65
    assert sum(b.language == "python" for b in found) >= 30


def test_no_block_escapes() -> None:
    """Blocks of code in other languages than those that run say why they do not; those that are skipped stay few."""
    every = [b for p in pages() for b in blocks(p)]
    other = [b for b in every if b.language not in (*RUNNABLE, "yaml", "text", "")]
    assert not [f"{b.page}:{b.line}: {b.language}" for b in other if not b.skipped]
    code = [b for b in every if b.language in (*RUNNABLE, "yaml") or b in other]
    skipped = [f"{b.page}:{b.line}: {b.note}" for b in code if b.skipped]
    assert len(code) >= 90 and len(skipped) <= len(code) // 3, "\n".join(skipped)


def test_every_skipped_block_says_why() -> None:
    for page in pages():
        for block in blocks(page):
            note = block.note
            assert note in ("", "exit 0 or 1") or re.fullmatch(r"skip: .{8,}|file: \w+\.py", note), (
                f"{block.page}:{block.line}: {note!r}"
            )


def test_every_yaml_block_is_part_of_a_recipe() -> None:
    count = 0
    for page in pages():
        for block in blocks(page):
            if block.language == "yaml":
                part = yaml.safe_load(block.code)
                given = {"model": "tiny:all", "pairs": [["text", "image"]], **part}
                given["data"] = {"train": "a", "val": "b", **part.get("data", {})}
                mmtune.Recipe.read(given)
                count += 1
    assert count >= 3


def test_every_link_between_pages_leads_somewhere() -> None:
    count = 0
    for page in [*pages(), ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            if path.startswith("http"):
                continue
            found = page.parent / path if path else page
            assert found.exists(), f"{page.name}: {target}"
            if anchor:
                heads = [
                    re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-")
                    for h in re.findall(r"^#+ (.+)$", found.read_text(), re.M)
                ]
                assert anchor in heads, f"{page.name}: {target}"
            count += 1
    assert count > 20


def test_the_readme_is_short_and_named_files_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    for name in re.findall(r"`((?:recipes|notebooks|docs|tests)/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


def test_the_check_command_lists_what_contributing_says() -> None:
    from tests import check

    text = (ROOT / "CONTRIBUTING.md").read_text()
    for command in ("ruff check .", "ruff format --check .", "mypy", "lint-imports", "pytest"):
        assert f"`{command}" in text
    assert [*check.CHECKS] == ["ruff", "format", "mypy", "imports", "tests", "precision"]
    assert check.main(["--only", "ruff"]) == 0
