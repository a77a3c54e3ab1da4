"""Threads and processes that work through tasks: order, look-ahead, errors, signals, and processes that die."""

import os
import signal
import sys
import time

import pytest
import torch

from mmtune.errors import DataError, RecipeError
from mmtune.runtime import worker_pool
from mmtune.runtime.worker_pool import WorkerPool, count_workers

KINDS = ["threads", pytest.param("processes", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs fork"))]


def pool(function, workers=3, kind="threads"):
    return WorkerPool(function, workers, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_results_in_order_and_a_bounded_look_ahead(kind):
    taken, most, done, ids = 0, 0, 0, set()

    def tasks():
        nonlocal taken, most
        for n in range(30):
            taken += 1
            most = max(most, taken - done)
            yield (n, "x")

    def work(n, what):
        time.sleep(0.005 * (n % 3 == 0))
        return n, what, os.getpid(), torch.get_num_threads()

    workers = pool(work, kind=kind)
    for repeat in range(2):  # the same processes work for the second map
        found = []
        for result in workers.map(tasks()):
            found.append(result)
            done += 1
        assert [r[:2] for r in found] == [(n, "x") for n in range(30)]
        assert {r[3] for r in found} == {1} and (os.getpid() in {r[2] for r in found}) == (kind == "threads")
        assert workers.ahead <= most <= workers.ahead + 1
        assert repeat == 0 or {r[2] for r in found} <= ids
        ids = {r[2] for r in found}
    assert list(workers.map([])) == []
    workers.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_that_is_left_and_errors(kind):
    def work(n):
        if n == 7:
            raise DataError("row 7 is bad")
        if n == 107:
            raise ZeroDivisionError
        return torch.full((n + 1,), float(n))

    workers = pool(work, 2, kind)
    left = workers.map((n,) for n in range(100))
    assert [len(next(left)) for _ in range(3)] == [1, 2, 3]
    left.close()
    assert [int(x[0]) for x in workers.map((n,) for n in (3, 1, 2))] == [3, 1, 2]
    with pytest.raises(DataError, match="^row 7 is bad$"):
        list(workers.map((n,) for n in range(20)))
    with pytest.raises(ZeroDivisionError):
        list(workers.map([(107,)]))

    def bad():
        yield (1,)
        raise DataError("the tasks end")

    with pytest.raises(DataError, match="the tasks end"):
        list(workers.map(bad()))
    workers.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_signals_do_not_end_processes_and_a_killed_one_is_one_line():
    workers = pool(lambda n: (time.sleep(0.01), os.getpid())[1], 2, "processes")
    workers.start()
    results = workers.map((n,) for n in range(200))
    ids = {next(results) for _ in range(8)}
    for process in ids:
        os.kill(process, signal.SIGINT)
        os.kill(process, signal.SIGTERM)
    assert {next(results) for _ in range(8)} == ids
    os.kill(min(ids), signal.SIGKILL)
    with pytest.raises(DataError, match=r"^data.worker_kind: a worker process was killed.*fewer data.workers") as error:
        list(results)
    assert "\n" not in str(error.value)
    assert len(list(workers.map((n,) for n in range(4)))) == 4  # other processes are started
    workers.close()
    end = time.monotonic() + 30
    while any(_is_running(p) for p in ids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_is_running(p) for p in ids)


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_a_process_that_is_killed_while_it_looks_whether_to_end_blocks_nobody():
    """The event of multiprocessing takes a lock to be read; a process that was killed then held it for ever."""
    workers = pool(lambda n: n, 2, "processes")
    workers.start()
    event = workers._loader._iterator._workers_done_event
    assert isinstance(event, worker_pool._Flag) and not event.is_set()
    processes = workers._loader._iterator._workers
    stopped = processes[0].pid
    os.kill(stopped, signal.SIGSTOP)  # it ends neither by the flag nor by SIGTERM
    workers.close()
    assert event.is_set() and not any(_is_running(p.pid) for p in processes)


def _is_running(process: int) -> bool:
    try:
        return open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_messages_numbers_and_systems(monkeypatch):
    assert "--shm-size" in worker_pool._what_ended_it("DataLoader worker (pid 3) is killed by signal: Bus error.")
    monkeypatch.setattr(worker_pool, "local_cpus", lambda: 64)
    assert [count_workers("auto", "cuda"), count_workers("auto", "cpu"), count_workers(7, "cpu")] == [16, 4, 7]
    monkeypatch.setattr(worker_pool, "local_cpus", lambda: 1)
    assert count_workers("auto", "cuda") == 1
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(RecipeError, match="worker_kind: processes need Linux"):
        WorkerPool(len, 2, "processes")
