"""Threads and allocator settings for training: data threads use one thread each, freed memory is reused."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from mmtune.runtime.malloc import KEEP_ALL, KEEP_SMALL
from mmtune.runtime.openmp_policy import set_openmp_wait_policy
from mmtune.runtime.threads import data_thread_pool


def test_a_data_thread_uses_one_thread_and_other_threads_as_many_as_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        x = torch.randn(300, 300, dtype=torch.float64)
        with data_thread_pool(2) as pool:
            seen = [f.result() for f in [pool.submit(torch.get_num_threads) for _ in range(4)]]
            product = pool.submit(torch.matmul, x, x).result()
        assert torch.get_num_threads() == 3 and torch.allclose(product, x @ x)
        if platform.system() == "Linux":
            assert seen == [1] * 4
    finally:
        torch.set_num_threads(before)


PAGE_FAULTS = """
import resource, torch
from mmtune.runtime.malloc import keep_freed_memory

size = 20 << 20

def faults(times):
    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        torch.zeros(size // 4).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

print(size // resource.getpagesize(), faults(4))
with keep_freed_memory():
    faults(8)  # the heap grows
    print(min(faults(4) for _ in range(3)))  # it grows once more if a small block came to lie in the freed memory
print(faults(4))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_freed_memory_is_reused():
    """In a process of its own: a heap with free space from earlier tests has no page faults to avoid."""
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, check=True)
    pages, before, inside, after = map(int, done.stdout.split())
    if before < pages:
        pytest.skip("memory comes without page faults here: huge pages, or a kernel that counts none")
    assert inside < pages
    assert after >= pages


GIVEN_BACK = """
import resource, sys, torch
from mmtune.runtime.malloc import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

with keep_freed_memory(int(sys.argv[1])):
    pieces = [(torch.ones(5 << 18), torch.ones(64)) for _ in range(8)]  # 5 MB, and what stays
    full, stay = resident(), [small for _, small in pieces]
    del pieces
    print(full - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_freed_sharded_weights_are_returned():
    """Small blocks that live between them would pin their memory. In a process of its own, whose heap is small."""

    def given_back(below: int) -> int:
        return int(subprocess.run([sys.executable, "-c", GIVEN_BACK, str(below)], capture_output=True, check=True).stdout)

    assert given_back(KEEP_SMALL) > 30 << 20
    assert given_back(KEEP_ALL) < 10 << 20


def test_importing_and_asking_for_the_wait_policy(monkeypatch):
    """Only `set_openmp_wait_policy` changes the environment, and never what the user has set."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    set_openmp_wait_policy()
    assert (os.environ.pop("OMP_WAIT_POLICY"), os.environ.pop("GOMP_SPINCOUNT")) == ("PASSIVE", "10000")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    set_openmp_wait_policy()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and "GOMP_SPINCOUNT" not in os.environ


AT_WORK = """
import os, sys
import mmtune
from mmtune.errors import MmtuneError
assert "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ, "import mmtune sets nothing"

class AtImportOfTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("at torch", os.environ.get("GOMP_SPINCOUNT"))

sys.meta_path.insert(0, AtImportOfTorch())
NO = "no-such-place"
CALLS = {
    "load": (NO,), "embed": (NO, NO, NO), "mine": (NO, NO, NO), "evaluate": (NO, NO), "compare": (NO, NO, NO), "report": (NO, NO),
    "doctor": (NO,), "soup": ([NO], NO, NO), "bench": (NO,), "train": (NO,),
}
for name, values in CALLS.items():
    os.environ.pop("GOMP_SPINCOUNT", None), os.environ.pop("OMP_WAIT_POLICY", None)
    try:
        getattr(mmtune, name)(*values)
    except MmtuneError:
        print(name, os.environ.get("GOMP_SPINCOUNT"))
os.environ.pop("GOMP_SPINCOUNT"), os.environ.pop("OMP_WAIT_POLICY")
try:
    mmtune.advise(NO, NO, corpus_size=9)
except MmtuneError:
    print("advise", os.environ.get("GOMP_SPINCOUNT"))
"""


def test_every_public_function_that_computes_sets_the_policy_before_torch_is_imported():
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", AT_WORK], capture_output=True, text=True, env=clean)
    said = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    names = ["load", "embed", "mine", "evaluate", "compare", "report", "doctor", "soup", "bench", "train", "advise"]
    assert said == dict.fromkeys(["at torch", *names], "10000"), done.stderr
