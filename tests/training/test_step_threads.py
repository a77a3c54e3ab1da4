"""`runtime.threads`: what a run sets, says, logs and restores; equal numbers give equal bits."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

import mmtune
from mmtune.errors import RecipeError
from mmtune.recipe.recipe import Recipe
from mmtune.runtime.distributed import Processes
from mmtune.training import slow_steps, step_threads
from mmtune.training.loop import Trainer
from mmtune.training.slow_steps import SlowSteps, starved_seconds
from mmtune.training.step_threads import StepThreads
from tests.support import corpora
from tests.training.test_dist_train import lines, weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpora.packed(tmp_path_factory.mktemp("threads"))


@pytest.fixture(autouse=True)
def _cpus(monkeypatch):
    monkeypatch.setattr(step_threads, "local_cpus", lambda: 2)


def train(data, run, threads):
    recipe = {
        "model": "tiny:clip",
        "data": {"train": data},
        "train": {"epochs": 5, "batch_size": 8, "precision": "fp32"},
        "run": {"dir": str(run)},
        "runtime": {"threads": threads},
    }
    return mmtune.train(recipe, quiet=False)


def test_auto_tries_says_and_logs_numbers_of_threads(data, tmp_path, capfd):
    before = torch.get_num_threads()
    train(data, tmp_path / "auto", "auto")
    assert torch.get_num_threads() == before
    logged = [r["threads"] for r in lines(tmp_path / "auto") if "loss" in r]
    assert logged[:6] == [2, 2, 2, 1, 1, 1] and set(logged[6:]) <= {1, 2}
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("runtime.threads: ")]
    assert len(said) == 1 and f"runtime.threads: {logged[-1]:.0f} from now on (pairs/s by number of threads: 1: " in said[0]


def test_a_fixed_number_is_set_and_equal_runs_are_bit_identical(data, tmp_path, monkeypatch):
    seen, step = [], Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, batch: (seen.append(torch.get_num_threads()), step(self, batch))[1])
    for name in ("a", "b"):
        train(data, tmp_path / name, 3)
    assert set(seen) == {3} and weights(tmp_path / "a") == weights(tmp_path / "b")
    assert "threads" not in lines(tmp_path / "a")[0]


def test_without_a_number_the_quota_counts_unless_the_user_has_decided(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(5)
    try:
        with StepThreads(None).running(CPU):
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 5
        with StepThreads(None).running(torch.device("meta")):
            assert torch.get_num_threads() == 5  # not a CPU
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        with StepThreads(None).running(CPU):
            assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(before)


class Rank(Processes):
    """A rank whose broadcasts go through a list that all ranks share."""

    def __init__(self, rank: int, told: list):
        super().__init__(rank, 2)
        self.told, self.calls = told, 0

    def broadcast(self, value=None):
        self.calls += 1
        if self.rank == 0:
            self.told.append(value)
        return self.told[self.calls - 1]


def test_ranks_use_the_number_that_rank_0_has_measured():
    before, told = torch.get_num_threads(), []
    used = {}
    for rank, rate in ((0, {1: 50, 2: 10}), (1, {1: 10, 2: 50})):  # rank 1 alone would decide otherwise
        threads = StepThreads("auto", Rank(rank, told), quiet=True)
        with threads.running(CPU):
            used[rank] = []
            for _ in range(40):
                used[rank].append(torch.get_num_threads())
                threads.after_step(8, 8 / rate[torch.get_num_threads()])
    assert used[0] == used[1] and used[0][-1] == 1 and torch.get_num_threads() == before


def test_threads_without_a_cpu_are_reported(capfd, monkeypatch):
    before = torch.get_num_threads()
    for each, wanted in ((0.0, 0), (100.0, 1)):
        values = itertools.count(0.0, each)
        monkeypatch.setattr(slow_steps, "starved_seconds", lambda values=values: next(values))
        threads = StepThreads(2)
        with threads.running(CPU):
            for _ in range(30):
                threads.after_step(8, 0.1)
        assert capfd.readouterr().err.count("runtime.threads=auto measures") == wanted
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("waits", "says"),
    [
        (True, "take 5.0 times as long as the fastest ones so far (16.0 pairs/s, then 80.0); they wait for a free CPU ("),
        (
            None,
            "take 5.0 times as long as the fastest ones so far (16.0 pairs/s, then 80.0); other programs may be running. Stop",
        ),
        (False, None),  # the steps are slower for another reason
    ],
)
def test_steps_that_become_far_slower_are_reported_once(waits, says):
    """As when other programs start in the middle of a run."""
    slow, counter = False, itertools.count(0.0, 100.0)
    watch = SlowSteps(lambda: None if waits is None else next(counter) if waits and slow else 0.0)
    watch.begin()
    lines = [watch.record(8, 0.1, 2) for _ in range(40)]
    slow = True
    if waits:
        watch.begin()
    lines += [watch.record(8, 0.15, 2) for _ in range(24)]  # half as long again: nothing is said
    assert not any(lines)
    lines = [line for _ in range(64) if (line := watch.record(8, 0.5, 2))]
    assert len(lines) == (1 if says else 0) and (not says or says in lines[0])
    if says:
        assert "continue it with --resume runtime.threads=auto" in lines[0] and "\n" not in lines[0]
    alone = SlowSteps(lambda: None)
    alone.begin()
    assert not any(alone.record(8, t, 1) for t in [0.1] * 24 + [9.0] * 24)  # with one thread there is nothing to set


def test_a_real_run_beside_programs_that_take_its_cpus_is_told(tmp_path):
    """Two threads on one CPU beside a program that takes it, too: they are ready to run, and wait."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("no CPU affinity on this system")
    script = (
        "import os, subprocess, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import torch; "
        "from mmtune.training.step_threads import StepThreads; x = torch.randn(600, 600); steps = StepThreads(2)\n"
        "other = subprocess.Popen([sys.executable, '-c', 'while True: pass'])\n"
        "try:\n"
        "    with steps.running(torch.device('cpu')):\n"
        "        for _ in range(16):\n"
        "            for _ in range(20): x @ x\n"
        "            steps.after_step(8, 0.1)\n"
        "finally: other.kill()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and done.stderr.count("runtime.threads: the 2 threads of a step wait for a free CPU (") == 1, (
        done.stderr
    )


def test_seconds_that_the_kernel_counts(tmp_path):
    for task, text in (("1", "5 2000000000 7\n"), ("2", "5 500000000 7\n"), ("3", "")):
        (tmp_path / task).mkdir()
        (tmp_path / task / "schedstat").write_text(text)
    assert starved_seconds(tmp_path) == 2.5 and starved_seconds(tmp_path / "no") is None
    assert starved_seconds() is None or starved_seconds() >= 0


@pytest.mark.parametrize("value", [0, -1, "fast", 1.5])
def test_bad_numbers(value):
    with pytest.raises(RecipeError, match=r"runtime\.threads"):
        Recipe.parse({"model": "tiny:clip", "data": {"train": "x"}, "runtime": {"threads": value}})
