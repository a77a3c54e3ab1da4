"""The command line: one table of verbs. Only the verb that was asked for is imported, so `mmtune --help` answers at once.

Each verb is a module with `arguments(parser)` and `run(args) -> Result`. Results go to standard output (a JSON document
with --json), everything else to standard error. Exit status: 0 done, 1 the answer is no, 2 bad input in one line.
"""

import sys

VERBS = {
    "demo": "the whole job on a small catalog and machine sounds it makes itself",
    "init": "a commented recipe to start from",
    "pack": "CSV/TSV/JSONL/Parquet/folder -> checked WebDataset shards",
    "train": "tune a model by a recipe -> a run with checkpoints, metrics and an artifact",
    "bench": "how fast a recipe is on this machine, and what it waits for",
    "soup": "the mean of several runs' weights, the good ones only -> an artifact",
    "embed": "vectors and ids of a corpus, as Parquet",
    "eval": "retrieval metrics in every direction",
    "mine": "hard negatives with guards against false ones, and an audit",
    "doctor": "leaks, duplicates, broken values, suspect labels, a collapsed space: before money is spent",
    "advise": "tune or not, with what, and at what re-indexing cost",
    "compare": "base against candidate, paired, with intervals and the gate's verdict",
    "index": "a collection: build, search, shadow, promote, roll back; a new model is a new version",
    "serve": "search a collection over HTTP: REST, and a page with pictures and players",
    "report": "one self-contained HTML file: verdict, curves, before and after",
}


def usage() -> str:
    """The text of `mmtune --help`."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {v:<{width}}{text}" for v, text in VERBS.items())
    return (
        "usage: mmtune VERB [options]\n\n"
        "Tune CLIP/CLAP-type dual encoders on your own images, sounds and texts; prove it; ship the new space.\n\n"
        f"{verbs}\n\n"
        "`mmtune VERB --help` explains a verb. Every verb takes --json (one document on standard output) and --debug.\n"
        "MODEL: an artifact directory, hf:NAME_OR_DIR, open_clip:NAME/TAG_OR_DIR, tiny:NAME.\n"
        "DATA: a directory of WebDataset shards, a tar, a brace pattern, or any fsspec URL of these.\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if argv[0] in ("--version", "-V"):
        from mmtune import __version__

        print(f"mmtune {__version__}")
        return 0
    from mmtune.cli.dispatch import dispatch

    return dispatch(argv[0], argv[1:])
