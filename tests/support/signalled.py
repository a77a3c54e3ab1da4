"""The command line as a process that gets a signal at an exact point of its work, so that it falls there on a machine of any speed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

CODE = """
import functools, importlib, os, signal, sys
where, number, received = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
count = 0
def signalled(function):
    @functools.wraps(function)
    def call(*arguments, **named):
        global count
        result = function(*arguments, **named)
        count += 1
        if count == number:
            os.kill(os.getpid(), received)
        return result
    return call
if where:
    module, _, names = where.partition(":")
    *owners, name = names.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    setattr(owner, name, signalled(getattr(owner, name)))
# a shell's background jobs, and so their children, ignore Ctrl-C; this one shall hear it wherever the tests run
signal.signal(signal.SIGINT, signal.default_int_handler)
from mmtune.cli import main
sys.exit(main(sys.argv[4:]))
"""


class Signal(NamedTuple):
    """`number` (a signal) after the n-th call of a function, "package.module:function" or "package.module:Class.method"."""

    function: str = ""
    call: int = 0
    number: int = 0


NO_SIGNAL = Signal()


def mmtune_process(*argv: object, at: Signal = NO_SIGNAL, **options: Any) -> subprocess.Popen[str]:
    """`mmtune ARGV` as a process that sends itself the signal `at`; its output is captured unless `options` of Popen say otherwise."""
    command = [sys.executable, "-c", CODE, *map(str, at), *map(str, argv)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]} | options
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **options)
