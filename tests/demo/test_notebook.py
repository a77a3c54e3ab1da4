"""The notebook is its script, and it runs."""

import json
from pathlib import Path

import pytest

from tests.support.notebook_helpers import percent_cells

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("*.py"))
SHOWN = {
    "catalog_search": (6, 0),
    "click_log": (4, 0),
    "first_run": (6, 4),
    "fourth_modality": (2, 2),
    "machine_sounds": (10, 8),
    "research": (2, 0),
    "shipping_a_model": (3, 0),
    "speed": (6, 4),
}
"""Notebook -> how many pictures and players it has at least."""


def test_there_are_notebooks() -> None:
    assert [s.stem for s in SCRIPTS] == sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")) == [*SHOWN]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_the_notebook_equals_its_script(script: Path) -> None:
    """If not: jupytext --to ipynb notebooks/NAME.py && jupyter execute --inplace notebooks/NAME.ipynb"""
    cells = json.loads(script.with_suffix(".ipynb").read_text())["cells"]
    assert [(c["cell_type"], "".join(c["source"])) for c in cells] == percent_cells(script)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_the_notebook_shows_pictures_players_and_no_machine_path(script: Path) -> None:
    """The outputs that are in the repository came from a whole run, in order, and say nothing about where it ran."""
    cells = [c for c in json.loads(script.with_suffix(".ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = json.dumps([c["outputs"] for c in cells])
    assert (outputs.count('"image/png"') >= SHOWN[script.stem][0]) and outputs.count("<audio") >= SHOWN[script.stem][1]
    assert '"output_type": "error"' not in outputs and not any(p in outputs for p in ("/work/", "/tmp/", "/opt/", "/home/"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_the_notebook_runs(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_BENCH_ROUNDS", "1")
    nbclient = pytest.importorskip("nbclient", reason='needs pip install -e ".[notebook]"')
    nbformat = pytest.importorskip("nbformat", reason='needs pip install -e ".[notebook]"')
    pytest.importorskip("ipykernel", reason='needs pip install -e ".[notebook]"')
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    done = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [o for c in done.cells if c.cell_type == "code" for o in c.outputs]
    pictures = sum("image/png" in o.get("data", {}) for o in outputs)
    players = sum("<audio" in o.get("data", {}).get("text/html", "") for o in outputs)
    assert pictures >= SHOWN[script.stem][0] and players >= SHOWN[script.stem][1]
    assert not any(o.output_type == "error" for o in outputs)
