"""Runs one verb in this process, through the command line's own entry."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from mmtune.cli import main

Verb: TypeAlias = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str]) -> Verb:
    """verb(*arguments) -> (exit status, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return status, said.out, said.err

    return run
