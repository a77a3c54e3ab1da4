"""The laws of the package that a machine can check."""

import argparse
import ast
import collections
import configparser
import contextlib
import re
import subprocess
import sys
import time
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mmtune import modalities
from mmtune.errors import first_line

PACKAGE = Path(__file__).parents[1] / "mmtune"
TESTS = Path(__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAY_NAME_A_MODALITY = {"modalities", "backbones", "demo"}
"""Rooms that may name a modality: what knows signals, what knows checkpoints, and the demo, which draws data of its own."""
NAMES = "|".join(["image", "audio", "text"])
OTHER_MEANINGS = {("index/item_catalog.py", "text"), ("index/query/facets.py", "text")}
"""(file, string) of code strings that are no modality: SQLite's name for the type of a JSON string."""
ROOT_MODULES = {"__init__", "__main__", "contracts", "errors", "run"}


# --- law 1: modalities are keyed by name ---------------------------------------------------------------------------------


def identifiers(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, identifier) of every name that the code defines or uses."""
    found = []
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(value := getattr(node, field, None), str):
                found.append((line, value))
    return found


def code_strings(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, string) of every string constant that is no docstring."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]


def names_a_modality(identifier: str) -> bool:
    """`_` and digits are borders: `audio_dim` does, `texture` does not. `text` is also Python's word for characters."""
    return re.search(r"(?<![a-z])(image|audio)(?![a-z])", identifier.lower()) is not None


def is_a_modality(string: str) -> bool:
    """A key or a value that the code works with: one word, or words joined by other signs than spaces. Prose is free."""
    if re.fullmatch(rf"({NAMES})(->({NAMES}))?", string):
        return True
    return " " not in string.strip() and "\n" not in string and names_a_modality(string)


def test_no_identifier_and_no_code_string_names_a_modality_outside_its_rooms():
    offences, checked = [], 0
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] in MAY_NAME_A_MODALITY:
            continue
        checked += 1
        tree = ast.parse(path.read_text())
        named = [(line, x) for line, x in identifiers(tree) if names_a_modality(x)]
        named += [(line, x) for line, x in code_strings(tree) if is_a_modality(x)]
        place = path.relative_to(PACKAGE).as_posix()
        offences += [f"{place}:{line}: {x[:80]}" for line, x in named if (place, x) not in OTHER_MEANINGS]
    assert checked > 100 and not offences, "\n".join(offences)


def test_what_law_1_would_find():
    assert names_a_modality("audio_dim") and names_a_modality("IMAGE2") and not names_a_modality("write_text")
    assert is_a_modality("text") and is_a_modality("text->image") and is_a_modality("audio/wav") and is_a_modality("image_id")
    assert not is_a_modality("an image and its caption") and not is_a_modality("text/html") and not is_a_modality("texture")
    tree = ast.parse('"""Of an image."""\nx = {"text": 1}\n')
    assert [s for _, s in code_strings(tree)] == ["text"]


def test_the_table_is_the_only_list_of_modalities():
    assert list(modalities.TABLE) == ["image", "audio", "text"]


# --- rooms ---------------------------------------------------------------------------------------------------------------


def test_rooms_import_only_downwards():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 1 kept, 0 broken" in done.stdout


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def test_every_room_has_its_place_in_the_order():
    config = configparser.ConfigParser()
    config.read(PACKAGE.parent / ".importlinter")
    ordered = re.findall(r"[a-z_]+", config["importlinter:contract:rooms"]["layers"])
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")} | (ROOT_MODULES - {"__init__", "__main__"})
    assert sorted(ordered) == sorted(rooms)


def imports(path: Path, modules: set[str]) -> set[str]:
    """Modules of this package that a file imports, inside functions too; not those for type checkers alone."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for branch in node.body
        for inner in ast.walk(branch)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {full if (full := f"{node.module}.{a.name}") in modules else node.module for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found & modules


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = []
            while not part or part[-1] != node:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def test_no_import_circles_function_level_imports_counted():
    modules = {module_name(p) for p in FILES}
    edges = {module_name(p): imports(p, modules) - {module_name(p)} for p in FILES}
    assert sum(map(len, edges.values())) > 1000
    assert circles(edges) == []


def test_a_circle_would_be_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_root_has_few_modules_and_file_names_are_unique():
    assert {p.stem for p in PACKAGE.glob("*.py")} == ROOT_MODULES and len(ROOT_MODULES) <= 6
    assert (PACKAGE / "py.typed").exists()
    counts = collections.Counter(p.name for p in FILES if p.name != "__init__.py")
    assert [name for name, count in counts.items() if count > 1] == []


def test_tests_mirror_the_rooms():
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    folders = {p.name for p in TESTS.iterdir() if p.is_dir() and list(p.glob("**/test_*.py"))}
    assert folders - rooms <= {"benchmarks", "cases", "docs"}
    assert rooms - folders <= {"html"}  # whose templates the tests of reporting, mining and serve render


# --- style ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_style_and_types(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


PYPROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())


def requirements_of(name: str, extra: str) -> list[Requirement]:
    """What a distribution requires: this package by its pyproject.toml, another by its metadata, nothing if not installed."""
    if name == PYPROJECT["project"]["name"]:
        lines = PYPROJECT["project"]["optional-dependencies"][extra] if extra else PYPROJECT["project"]["dependencies"]
        return [Requirement(line) for line in lines]
    with contextlib.suppress(PackageNotFoundError):
        found = [Requirement(line) for line in requires(name) or []]
        return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]
    return []


def distributions_of(requirement: str) -> set[str]:
    """Canonical names of what `pip install requirement` installs."""
    found = set()
    todo = [Requirement(requirement)]
    while todo:
        needed = todo.pop()
        name = canonicalize_name(needed.name)
        for extra in {"", *needed.extras} - {e for n, e in found if n == name}:
            found.add((name, extra))
            todo += requirements_of(name, extra)
    return {name for name, _ in found}


def test_types_do_not_depend_on_what_else_is_installed():
    """mypy reads an installed library: one that CI lacks, and a machine has, must be one that mypy never reads."""
    trees = [ast.parse(path.read_text()) for path in FILES]
    names = [a.name for t in trees for n in ast.walk(t) if isinstance(n, ast.Import) for a in n.names]
    names += [str(n.module) for t in trees for n in ast.walk(t) if isinstance(n, ast.ImportFrom) and n.level == 0]
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"mmtune"}
    in_ci = distributions_of("mmtune[cpu,test]")
    of_module = packages_distributions()
    absent = {m for m in modules if not {canonicalize_name(d) for d in of_module.get(m, [m])} & in_ci}
    assert absent == {
        m.removesuffix(".*")
        for o in PYPROJECT["tool"]["mypy"]["overrides"]
        if o["follow_imports"] == "skip"
        for m in o["module"]
    }


def test_files_and_functions_stay_small_and_nothing_is_pickled():
    for path in FILES:
        source = path.read_text()
        assert source.count("\n") <= 400, path
        assert path.name != "utils.py"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                text = (ast.get_docstring(node) or "").count("\n")  # a line a parameter is no reason to say less
                assert node.end_lineno - node.lineno - text < 80, f"{path}:{node.lineno} {node.name}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cPickle", "dill", "joblib"}, path
            if isinstance(node, ast.Attribute) and node.attr == "load" and getattr(node.value, "id", "") == "torch":
                assert "weights_only=True" in source, path


def test_no_code_is_packed_to_save_lines():
    skip = "# fmt: " + "skip"
    assert [p for p in [*FILES, *TESTS.rglob("*.py")] if skip in p.read_text()] == []


def test_json_lines_end_at_newlines_alone():
    """`str.splitlines` also cuts at U+2028, U+0085 and others, which may stand inside a JSON string.

    It is allowed only on messages, in `errors.first_line`. A file that is iterated line by line as JSON must be opened with
    newline="\\n", because text mode also ends lines at "\\r".
    """
    offences = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        reads_json = re.search(r"json\.loads|jsonl|ndjson", path.read_text()) is not None
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("splitlines", "readlines") and reads_json:
                receiver = ast.unparse(node.value)
                if node.attr == "readlines" or not re.fullmatch(r"\(?str\((e|error)\)(\.strip\(\))?", receiver):
                    offences.append(f"{path.relative_to(PACKAGE)}:{node.lineno}: {receiver}.{node.attr}")
    assert not offences, offences


def test_messages_of_errors_are_cut_in_one_place():
    """`str(e).splitlines()[0]` is an IndexError where a library raised an error without a message."""
    cut = [p for p in FILES if re.search(r"str\((e|error)\)\.splitlines", p.read_text())]
    assert cut == [] and first_line(ValueError("a\nb")) == "a" and first_line(MemoryError()) == "MemoryError"


MOST_ANY = 100


def test_types_say_what_things_are():
    """`Any` is for what has no type: a third party's object, a decoded signal. A recipe has none."""
    counts = {p: len(re.findall(r"\bAny\b", p.read_text())) for p in FILES}
    assert sum(counts.values()) <= MOST_ANY
    assert [p for p in (PACKAGE / "recipe").glob("*.py") if "Any" in re.findall(r"\w+", p.read_text())] == []


# --- the command line and the package ------------------------------------------------------------------------------------


def test_help_answers_at_once():
    """Under five times the time of `python -c pass`; the quickest of several, taken in turn."""
    plain, ours = [], []
    for _ in range(7):
        for times, command in ((plain, ["-c", "pass"]), (ours, ["-m", "mmtune", "--help"])):
            begin = time.perf_counter()
            done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
            times.append(time.perf_counter() - begin)
            assert done.returncode == 0
    assert "usage: mmtune VERB" in done.stdout
    assert min(ours) < 5 * min(plain), (min(ours), min(plain))


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "transformers", "pydantic", "rich", "PIL")
    code = f"import sys, mmtune; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


SILENT = {"init", "recipe", "completion"}
SILENT_ACTIONS = {
    "plan",
    "search",
    "status",
    "delete",
    "promote",
    "rollback",
    "journal",
    "judgments",
    "probe",
    "health",
    "drop",
}
"""Verbs, and actions of `mmtune index`, that show no progress."""


def test_every_verb_that_shows_progress_has_quiet():
    """A new verb has --quiet (`add_quiet`) or is listed as silent, and none shows progress whatever the user says."""
    from mmtune.cli.dispatch import parser_of
    from mmtune.cli.verbs import VERBS

    without = set()
    for verb in VERBS:
        actions = [a for a in parser_of(verb)._actions if isinstance(a, argparse._SubParsersAction)]
        parsers = {f"{verb} {n}": p for a in actions for n, p in a.choices.items()} or {verb: parser_of(verb)}
        without |= {name for name, parser in parsers.items() if "--quiet" not in parser._option_string_actions}
    assert without == SILENT | {f"index {a}" for a in SILENT_ACTIONS}
    loud = [p.name for p in (PACKAGE / "cli").glob("*.py") if re.search(r"\bquiet=False\b", p.read_text())]
    assert not loud


def test_every_verb_has_a_module_and_help():
    from mmtune.cli import VERBS

    assert {f"{v}_verb.py" for v in VERBS} == {p.name for p in (PACKAGE / "cli").glob("*_verb.py")}
    for verb in VERBS:
        done = subprocess.run([sys.executable, "-m", "mmtune", verb, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and f"mmtune {verb}" in done.stdout and "--json" in done.stdout, done.stderr
