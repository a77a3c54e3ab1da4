"""The number of CPUs that a process may use: affinity, and the quotas of control groups of both versions."""

import os
from pathlib import Path

import pytest

from mmtune.runtime.cpu_quota import available_cpus, local_cpus


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),  # in a container: 2.5 CPUs
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "400000 100000\n"}, 4),  # a limit of the parent
        ("0::/host/path\n", {"cpu.max": "100000 100000\n"}, 1),  # the path of the host does not exist in the container
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        (
            "5:memory:/x\n4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "600000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            6,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "?"}, 64),
    ],
)
def test_quotas(tmp_path, monkeypatch, groups, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert available_cpus(machine(tmp_path, groups, files)) == cpus


def test_affinity_and_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert available_cpus(tmp_path) == 3
    monkeypatch.setattr("mmtune.runtime.cpu_quota.available_cpus", lambda: 8)
    for processes, share in (("2", 4), ("16", 1), ("x", 8), ("0", 8)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert local_cpus() == share
