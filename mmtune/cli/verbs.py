"""The table of verbs, and the text of `mmtune --help`."""

VERBS = {
    "demo": "run the whole workflow on a small catalog and machine sounds that it generates",
    "init": "write a commented recipe to start from, or the recipe's JSON Schema",
    "pack": "check CSV/TSV/JSONL/Parquet/folder and pack it into WebDataset shards",
    "train": "tune a model by a recipe: a run with checkpoints, metrics and an artifact",
    "bench": "measure how fast a recipe trains on this machine, and its bottleneck",
    "soup": "average the weights of several runs into one artifact",
    "embed": "write the vectors and ids of a corpus as Parquet",
    "eval": "compute retrieval metrics in every direction, or another task",
    "mine": "mine hard negatives with guards against false ones, and an audit",
    "doctor": "find leaks, duplicates, broken values, suspect labels, a collapsed space",
    "advise": "recommend whether and how to tune, and at what re-indexing cost",
    "compare": "compare base and candidate, paired, with intervals and the gate's verdict",
    "index": "build, search, shadow, promote and roll back a collection of versions",
    "serve": "serve a collection's search over HTTP: a REST API and a search page",
    "report": "write one self-contained HTML file: verdict, curves, before and after",
}


def usage() -> str:
    """The text of `mmtune --help`."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {v:<{width}}{text}" for v, text in VERBS.items())
    return (
        "usage: mmtune VERB [options]\n\n"
        "Tune CLIP/CLAP-type dual encoders on your own images, sounds and texts; prove it; ship the new embedding space.\n\n"
        f"{verbs}\n\n"
        "`mmtune VERB --help` explains a verb. Every verb takes --json (one document on standard output) and --debug.\n"
        "MODEL: an artifact directory, hf:NAME_OR_DIR, open_clip:NAME/TAG_OR_DIR, timm:NAME, st:NAME, tiny:NAME, or a tower each\n"
        "       (NAME=MODEL,NAME=MODEL).\n"
        "DATA: a directory of WebDataset shards, a tar, a brace pattern, or any fsspec URL of these.\n"
        "Example: mmtune demo\n"
    )
