"""The house's laws that a machine can check."""

import ast
import io
import re
import subprocess
import sys
import time
import tokenize
from pathlib import Path

import pytest

from mmtune import modalities

PACKAGE = Path(__file__).parents[1] / "mmtune"
SPOKEN = {tokenize.NAME, tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", -1)}
FREE = {"modalities", "backbones", "demo"}
"""Rooms that may name a modality: what knows signals, what knows checkpoints, and the demo, which draws data of its own."""


def sources() -> list[Path]:
    found = [p for p in sorted(PACKAGE.rglob("*.py")) if p.relative_to(PACKAGE).parts[0] not in FREE]
    assert len(found) > 60
    return found


def test_no_modality_word_outside_its_rooms():
    """In no identifier, string or comment; `_`, digits and punctuation are borders: `audio_dim` counts, `texture` does not."""
    word = re.compile(rf"(?<![a-z])({'|'.join(['image', 'audio', 'text'])})(?![a-z])")
    offences = []
    for path in sources():
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type in SPOKEN:
                for hit in word.finditer(token.string.lower()):
                    if not allowed(token.string, hit.group()):
                        offences.append(f"{path.relative_to(PACKAGE)}:{token.start[0]}: {token.string[:80]}")
    assert not offences, "\n".join(offences)


def allowed(token: str, word: str) -> bool:
    """`text` is also Python's and Rich's word for characters: identifiers of the standard kind, never a string that is one."""
    return word == "text" and token.strip("\"'frb") != "text" or word == "text" and token == "text"


def test_a_string_that_is_a_modality_would_be_found():
    assert not allowed('"text"', "text") and not allowed("image", "image") and not allowed("# per audio clip", "audio")
    assert allowed("text", "text") and allowed("write_text", "text")


def test_rooms_import_only_downwards():
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=PACKAGE.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_style_and_types(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_files_and_functions_stay_small_and_nothing_is_pickled():
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text()
        assert source.count("\n") <= 400, path
        assert path.name != "utils.py"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 80, f"{path}:{node.lineno} {node.name}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {a.name for a in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "cPickle", "dill", "joblib"}, path
            if isinstance(node, ast.Attribute) and node.attr == "load" and getattr(node.value, "id", "") == "torch":
                assert "weights_only=True" in source, path


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


def test_every_verb_has_a_module_and_help():
    from mmtune.cli import VERBS

    assert {f"{v}_verb.py" for v in VERBS} == {p.name for p in (PACKAGE / "cli").glob("*_verb.py")}
    for verb in VERBS:
        done = subprocess.run([sys.executable, "-m", "mmtune", verb, "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and f"mmtune {verb}" in done.stdout and "--json" in done.stdout, done.stderr


def test_the_table_is_the_only_list_of_modalities():
    assert list(modalities.TABLE) == ["image", "audio", "text"]
