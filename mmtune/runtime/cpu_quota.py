"""The number of CPUs that this process may use: its CPU affinity, and the CPU quota of its container (Linux control groups)."""

import contextlib
import math
import os
from pathlib import Path


def available_cpus(root: Path = Path("/")) -> int:
    """The number of CPUs that this process may use, at least 1.

    It is the smallest of the number of CPUs, the CPU affinity (`taskset`, cpusets) and the CPU quota of the control group or one of
    its parents (`docker run --cpus 2`, Kubernetes limits), rounded up. `os.cpu_count` and torch do not know the quota.

    root: directory that has proc and sys, for tests
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([cpus, *_quotas(root)])))


def local_cpus() -> int:
    """The share of `available_cpus` of one process, if torchrun or accelerate started several on this machine; at least 1."""
    try:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError:
        processes = 1
    return max(1, available_cpus() // max(1, processes))


def _quotas(root: Path) -> list[float]:
    """The quotas in CPUs of all control groups that this process is in."""
    found = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            # version 2 has one hierarchy without a list of controllers; version 1 has one for "cpu", often named "cpu,cpuacct"
            tops = [root / "sys/fs/cgroup"] if not controllers else [root / "sys/fs/cgroup" / n for n in (controllers, "cpu")]
            for top in tops:
                group = Path(path.lstrip("/"))
                # inside a container the path may be that of the host, which does not exist there; the top is then the group itself
                found += [_quota(top / g) for g in (group, *group.parents)]
    return [q for q in found if q is not None]


def _quota(group: Path) -> float | None:
    """The quota of one control group in CPUs; None without a limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else float(quota) / float(period)
    with contextlib.suppress(OSError, ValueError):
        microseconds = float((group / "cpu.cfs_quota_us").read_text())
        return microseconds / float((group / "cpu.cfs_period_us").read_text()) if microseconds > 0 else None
    return None
