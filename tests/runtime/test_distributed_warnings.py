"""Warnings of a run of several processes that was started from Python."""

import subprocess
import sys

import pytest

from tests.support.dist_helpers import start

pytestmark = pytest.mark.dist

RUN = """
import warnings
from mmtune.runtime.distributed import init_processes
with init_processes() as processes:
    warnings.warn("of all ranks", UserWarning, stacklevel=1)
warnings.warn("after", UserWarning, stacklevel=1)
"""


def test_a_warning_of_all_ranks_is_shown_once():
    ranks = start(2, [sys.executable, "-c", RUN], stderr=subprocess.PIPE, text=True)
    said = [process.communicate(timeout=240)[1] for process in ranks]
    assert [s.count("of all ranks") > 0 for s in said] == [True, False], said
    assert all("after" in s for s in said)
