"""The command line. Only the verb that was asked for is imported, so `mmtune --help` answers at once.

Each verb is a module with `arguments(parser)` and `run(args) -> Result`. Results go to standard output (a JSON document with
--json), everything else to standard error. Exit status: 0 done, 1 the answer is no, 2 bad input in one line.
"""

import sys

from mmtune.cli.verbs import VERBS, usage

__all__ = ["VERBS", "main", "usage"]


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status.

    Sets OMP_WAIT_POLICY and GOMP_SPINCOUNT unless the user has (see `mmtune.runtime.threads`), before torch is imported.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if argv[0] in ("--version", "-V"):
        from mmtune.runtime.version import __version__

        print(f"mmtune {__version__}")
        return 0
    from mmtune.cli.dispatch import dispatch
    from mmtune.runtime.threads import set_openmp_wait_policy

    set_openmp_wait_policy()
    return dispatch(argv[0], argv[1:])
