"""The wheel and the source distribution: complete, and installed into a bare environment; what is installed is listed and audited."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.docs_helpers import ROOT

BUILD = "import sys; from setuptools import build_meta as b; out = sys.argv[1]; b.build_sdist(out); b.build_wheel(out)"
DATA = {".json", ".yaml", ".html", ".j2", ".typed", ".py"}
"""Endings of the files of the package."""


def run(*command: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist), built from a copy of the tracked files."""
    pytest.importorskip("setuptools", minversion="77", reason="needs setuptools 77: pip install -U setuptools")
    root = tmp_path_factory.mktemp("release")
    for name in run("git", "ls-files", cwd=ROOT).split("\n"):
        if name and (ROOT / name).is_file():
            (root / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / "tree" / name)
    run(sys.executable, "-c", BUILD, str(root / "dist"), cwd=root / "tree")
    (wheel,), (sdist,) = (root / "dist").glob("*.whl"), (root / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package_and_no_other(built):
    names = {n for n in zipfile.ZipFile(built[0]).namelist() if n.startswith("mmtune/")}
    tracked = [Path(n) for n in run("git", "ls-files", "mmtune", cwd=ROOT).split("\n") if n]
    assert {p.suffix for p in tracked} <= DATA
    assert names == {p.as_posix() for p in tracked}
    for needed in ("py.typed", "backbones/config_defaults.json", "html/templates/report.html.j2"):
        assert f"mmtune/{needed}" in names
    text = (
        zipfile.ZipFile(built[0]).read(next(n for n in zipfile.ZipFile(built[0]).namelist() if n.endswith("METADATA"))).decode()
    )
    assert "License-Expression: Apache-2.0" in text and "Requires-Dist: torch" in text
    assert any(n.endswith("licenses/LICENSE") for n in zipfile.ZipFile(built[0]).namelist())


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as tar:
        tar.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    run(sys.executable, "-c", BUILD, str(tmp_path / "dist"), cwd=tree)
    (again,) = (tmp_path / "dist").glob("*.whl")
    first, second = zipfile.ZipFile(built[0]), zipfile.ZipFile(again)
    assert sorted(first.namelist()) == sorted(second.namelist())
    assert all(first.read(n) == second.read(n) for n in first.namelist() if not n.endswith("RECORD"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_wheel_works_in_a_bare_environment(built, tmp_path):
    """Installed without its dependencies, `mmtune --help` answers; with those of this environment on the path, verbs find their files."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    bare = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    pip = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check")
    run(python, *pip, built[0], env=bare)  # a PYTHONPATH of the caller would show pip a package that is installed already
    mmtune = python.with_name("mmtune")
    assert "usage: mmtune VERB" in run(mmtune, "--help", cwd=tmp_path, env=bare)
    assert run(mmtune, "--version", cwd=tmp_path, env=bare).startswith("mmtune ")
    whole = bare | {"PYTHONPATH": sysconfig.get_path("purelib")}
    where = run(python, "-c", "import mmtune; print(mmtune.__file__)", cwd=tmp_path, env=bare).strip()
    code = f"import sys; sys.path.insert(0, {str(Path(where).parents[1])!r}); from mmtune.cli import main; sys.exit(main(sys.argv[1:]))"
    run(python, "-c", code, "init", "own", "--case", "catalog", cwd=tmp_path, env=whole)
    run(python, "-c", code, "recipe", "show", "own/recipe.yaml", cwd=tmp_path, env=whole)
    fingerprint = (
        f"import sys; sys.path.insert(0, {str(Path(where).parents[1])!r}); import mmtune; "
        "from mmtune.html import render; print(mmtune.__file__, mmtune.load('tiny:clip', 'cpu').fingerprint)"
    )
    file, found = run(python, "-c", fingerprint, cwd=tmp_path, env=whole).split()
    assert file == where and found.startswith("mm3-")


def test_licences_are_stated_for_every_file_that_came_from_elsewhere():
    document = tomllib.loads((ROOT / "REUSE.toml").read_text())
    everything, *bundled = document["annotations"]
    assert everything["path"] == "**" and everything["SPDX-License-Identifier"] == "Apache-2.0"
    assert [a["path"] for a in bundled] == ["mmtune/backbones/config_defaults.json"]
    assert all((ROOT / a["path"]).is_file() for a in bundled)
    minified = [p for p in (ROOT / "mmtune").rglob("*.j2") if max(map(len, p.read_text().split("\n"))) > 1000]
    assert minified == []  # pages have no library of others in them
    assert not re.search(r"https?://[^\s\"']*\.(js|css)", "".join(p.read_text() for p in (ROOT / "mmtune").rglob("*.j2")))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_bill_of_materials_of_this_environment(tmp_path):
    """CONTRIBUTING.md has the command."""
    pytest.importorskip("cyclonedx_py", reason='needs pip install -e ".[release]"')
    out = tmp_path / "sbom.json"
    command = ["environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "--of", "JSON", "-o", out]
    run(sys.executable, "-m", "cyclonedx_py", *command, sys.executable)
    document = json.loads(out.read_text())
    assert document["bomFormat"] == "CycloneDX" and document["metadata"]["component"]["name"] == "mmtune"
    versions = {c["name"].lower(): c["version"] for c in document["components"]}
    assert {"torch", "transformers", "numpy", "pyarrow"} <= set(versions)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_required_package_has_a_known_vulnerability(tmp_path):
    """Of the versions in this environment. Without the network it is skipped."""
    from importlib.metadata import version

    pytest.importorskip("pip_audit", reason='needs pip install -e ".[release]"')
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[\[<>=;~ ]", r)[0] for r in required]
    (tmp_path / "r.txt").write_text("".join(f"{n}=={version(n).split('+')[0]}\n" for n in names))
    command = ["-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "-r", str(tmp_path / "r.txt")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    try:
        asked = json.loads(done.stdout)["dependencies"]
    except ValueError:
        pytest.skip(f"pip-audit cannot reach its database: {done.stderr.strip().splitlines()[-1][:200]}")
    unknown = [d["skip_reason"] for d in asked if "skip_reason" in d]
    if len(unknown) == len(asked):  # a mirror of PyPI without the database answers so
        pytest.skip(f"pip-audit cannot reach its database: {unknown[0][:200]}")
    assert not unknown and [d for d in asked if d["vulns"]] == []
