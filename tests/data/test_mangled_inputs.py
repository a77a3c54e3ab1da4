"""Mangled inputs: damaged media, archives, tables, manifests, configs, recipes and tables of negatives.

Nothing but errors for users may come of them, in one line; no hang, no crash; and `pack` accounts for every row. A sample runs by
default, all 2,000 with `-m slow`. Each runs in a process with limits of time and memory (`tests/support/mangled_cases.py`). To repeat
case N: python -m tests.support.mangled_cases OUT N N+1 1
"""

import collections
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mmtune.recipe.recipe import Recipe
from tests.support import mangle, mangled_cases

ROOT = Path(__file__).parents[2]
KINDS = {function.__name__ for function in (*mangled_cases.LIGHT, mangled_cases.packed)}


def run(folder: Path, first: int, stop: int, workers: int, seconds: int) -> list[dict[str, str]]:
    """Run the cases from `first` to `stop` in `workers` processes; a case that ends its process counts as a crash."""
    processes = []
    for number in range(workers):
        out = folder / f"{number}.jsonl"
        command = [sys.executable, "-m", "tests.support.mangled_cases", str(out), str(first + number), str(stop), str(workers)]
        with open(out.with_suffix(".err"), "wb") as said:  # decoders write warnings of their own
            processes.append((out, subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)))
    ended = []
    for out, process in processes:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        lines = [json.loads(line) for line in out.read_bytes().split(b"\n") if line] if out.exists() else []
        of_process = [line for line in lines if "outcome" in line]
        if process.returncode:
            said = out.with_suffix(".err").read_bytes()[-2000:]
            last = lines[-1] if lines else {"case": first, "kind": "start"}
            of_process.append(
                {**last, "outcome": "crash", "detail": f"exit status {process.returncode}: {said.decode('utf-8', 'replace')}"}
            )
        ended += of_process
    return ended


def check(ended: list[dict[str, str]], count: int) -> None:
    failed = [e for e in ended if e["outcome"] not in ("read", "refused")]
    assert not failed, "\n\n".join(f"case {e['case']} ({e['kind']}): {e['outcome']}\n{e['detail']}" for e in failed[:5])
    assert len(ended) == count and {e["kind"] for e in ended} == KINDS
    outcomes = collections.Counter(e["outcome"] for e in ended)
    assert min(outcomes["read"], outcomes["refused"]) > count / 10, outcomes  # neither all harmless nor all hopeless


def test_a_hundred_mangled_inputs(tmp_path: Path) -> None:
    check(run(tmp_path, 0, 100, 1, 120), 100)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_mangled_inputs(tmp_path: Path) -> None:
    check(run(tmp_path, 0, 2000, 2, 1700), 2000)


def test_the_inputs_are_good_before_they_are_mangled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each kind reads its input without damage; otherwise the damage would prove nothing."""
    monkeypatch.setattr(mangled_cases, "mangle", lambda data, rng: data)
    monkeypatch.setattr(mangled_cases, "mangle_json", lambda document, rng: document)
    monkeypatch.setattr(mangled_cases, "json_bytes", lambda document, rng: json.dumps(document).encode())
    Recipe.read(mangled_cases.RECIPE)
    for function in {f.__name__: f for f in mangled_cases.LIGHT}.values():
        folder = tmp_path / function.__name__
        folder.mkdir()
        if function.__name__ not in ("decode", "negatives_table", "text_table"):  # their inputs vary by themselves
            function(random.Random(3), folder)


def test_damage_is_a_function_of_the_seed() -> None:
    data = bytes(range(256)) * 4
    made = [mangle.mangle(data, random.Random(seed)) for seed in range(200)]
    assert made == [mangle.mangle(data, random.Random(seed)) for seed in range(200)]
    assert sum(m == data for m in made) < 20 and len(set(made)) > 150


def test_an_error_of_another_kind_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mangled_cases, "case", lambda number: ("x", lambda rng, folder: json.loads("{")))
    with pytest.raises(json.JSONDecodeError):
        mangled_cases.run_case(1)
