"""`mmtune completion bash`: what a real bash offers after TAB."""

import shutil
import subprocess
import sys

import pytest

from mmtune.cli import VERBS, main
from mmtune.cli.completion_verb import SHELLS

# What bash does at TAB: it fills COMP_WORDS and COMP_CWORD and calls the function that `complete -F` named.
ASK = r"""
source "$1"; shift
function=$(complete -p mmtune | sed 's/.*-F \([^ ]*\).*/\1/')
COMP_WORDS=(mmtune "$@"); COMP_CWORD=$#
"$function" mmtune "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "mmtune.bash"
    done = subprocess.run([sys.executable, "-m", "mmtune", "completion", "bash"], capture_output=True, text=True, check=True)
    path.write_text(done.stdout)
    return path


@pytest.fixture
def offered(script, tmp_path, monkeypatch):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    monkeypatch.chdir(tmp_path)

    def ask(*words: str) -> list[str]:
        done = subprocess.run(["bash", "--norc", "-c", ASK, "ask", str(script), *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    return ask


def test_verbs_actions_and_options(offered):
    assert set(VERBS) <= set(offered(""))
    assert offered("exp") == ["export"]
    assert sorted(offered("index", "re")) == ["repair", "restore"]
    assert sorted(offered("export", "--qu")) == ["--quantize", "--quiet"]
    assert offered("index", "promote", "--ret") == ["--retention"]
    assert "--query" in offered("pairs", "logs", "--q")


def test_choices(offered):
    assert offered("export", "--quantize", "") == ["int8"]
    assert sorted(offered("recipe", "d")) == ["diff", "docs"]
    assert offered("completion", "") == [*SHELLS]


def test_file_names(offered, tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mined").mkdir()
    assert sorted(offered("train", "mi")) == ["mine.yaml", "mined"]
    assert offered("export", "MODEL", "--out", "mi") == ["mined"]  # a directory


@pytest.mark.parametrize("shell", SHELLS)
def test_every_verb_is_in_every_script(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS) and "max-drop" in out


@pytest.mark.parametrize(("shell", "check"), [("bash", ["-n"]), ("zsh", ["-n"]), ("fish", ["--no-execute"])])
def test_the_shell_reads_its_script(shell, check, capsys, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    done = subprocess.run([shell, *check, str(tmp_path / "script")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_parsers_of_all_verbs_import_nothing_heavy():
    heavy = ("torch", "transformers", "pydantic", "rich", "pandas")
    code = f"import sys; from mmtune.cli.completion_verb import whole_parser; whole_parser(); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'pip install "mmtune[completion]"' in capsys.readouterr().err
