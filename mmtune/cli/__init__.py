"""The command line `mmtune VERB ...`. Only the module of the requested verb is imported, so that `mmtune --help` is fast.

The module of a verb has the functions `arguments(parser)` and `run(args) -> Result`. Results are printed on standard output (a
JSON document with --json), and everything else on standard error.

Exit status:
    0    success
    1    the command ran, with a negative outcome, e.g. a model that fails the gate
    2    invalid input, reported in one line
    130  stopped by Ctrl-C or a signal
"""

import sys

from mmtune.cli.verbs import VERBS, usage

__all__ = ["VERBS", "main", "usage"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit status. This is the entry point of the console script.

    argv: arguments without the program name; default: those of the process.

    Sets OMP_WAIT_POLICY and GOMP_SPINCOUNT before torch is imported, unless they are set (see `mmtune.runtime.openmp_policy`).
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
    from mmtune.runtime.openmp_policy import set_openmp_wait_policy
    from mmtune.runtime.pillow_warnings import ignore_pillow_warnings

    set_openmp_wait_policy()
    ignore_pillow_warnings()
    return dispatch(argv[0], argv[1:])
