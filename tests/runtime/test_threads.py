"""What keeps the data threads and the heap out of a training step's way."""

import platform
import resource
import subprocess
import sys

import pytest
import torch

from mmtune.runtime.malloc import KEEP_ALL, KEEP_SMALL, keep_freed_memory
from mmtune.runtime.threads import data_thread_pool


def test_a_data_thread_works_alone_and_the_others_as_before():
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap is glibc's")
def test_memory_that_was_freed_is_used_again():
    size = 20 << 20
    pages = size // resource.getpagesize()

    def faults(times: int) -> int:
        begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            torch.zeros(size // 4).fill_(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin

    if faults(4) < pages:
        pytest.skip("memory comes without page faults here: huge pages, or a kernel that counts none")
    with keep_freed_memory():
        faults(8)  # the heap grows
        assert faults(4) < pages
    assert faults(4) >= pages


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
def test_weights_that_come_and_go_leave_no_holes():
    """What stays between them would keep the system from getting their memory back. In a process whose heap is small still."""

    def given_back(below: int) -> int:
        return int(subprocess.run([sys.executable, "-c", GIVEN_BACK, str(below)], capture_output=True, check=True).stdout)

    assert given_back(KEEP_SMALL) > 30 << 20
    assert given_back(KEEP_ALL) < 10 << 20
