"""What Windows lacks, simulated on this machine: modules and functions of POSIX. The rest of Windows was not run."""

import subprocess
import sys

import pytest

WITHOUT = """
import importlib, os, pkgutil, signal, sys
import torch, transformers, accelerate, sklearn, pyarrow, PIL, soundfile, rich, tempfile, getpass  # libraries know their system
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("fork", "getuid", "geteuid", "sched_getaffinity", "statvfs", "killpg", "setsid", "register_at_fork", "uname"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGBUS"):
    delattr(signal, name)
import subprocess
subprocess.Popen.kill = lambda process: os.kill(process.pid, 9)  # Windows ends a process without a signal
import mmtune
"""
IMPORT_ALL = """
failed = []
for module in pkgutil.walk_packages(mmtune.__path__, "mmtune."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except Exception as e:
        failed.append(f"{module.name}: {type(e).__name__}: {e}")
print(failed)
"""
USE = """
os.environ.pop("MMTUNE_USER", None)
from mmtune.index.audit_log import current_user
from mmtune.evaluation.ranks_blocked import worker_threads
from mmtune.runtime.cpu_quota import available_cpus
for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
    os.environ.pop(name, None)
rows = [{"id": str(i), "text": f"a {w} {n}", "group": n} for i, (w, n) in enumerate((w, n) for n in ("bag", "boot", "cup") for w in ("red", "blue"))]
model = mmtune.load("tiny:text", "cpu")
mmtune.save(model, "artifact")
result = mmtune.evaluate("artifact", rows, modalities=["text"], within=True)
with mmtune.Collection("shop", create=True) as c:
    built = c.build("artifact", mmtune.open_data(rows), quiet=True)
    c.promote(built.version, why="first")
    hit = c.search(text="a red bag", k=1).results[0].id
print(hit, current_user(), worker_threads() >= 1, available_cpus() >= 1, result.metric("map", "text->text") > 0)
"""


def run(code: str, tmp_path) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT + code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().split("\n")[-1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_module_is_imported_without_posix(tmp_path):
    assert run(IMPORT_ALL, tmp_path) == "[]"


def test_save_evaluate_and_search_without_posix(tmp_path):
    assert run(USE, tmp_path) == "0 unknown True True True"
