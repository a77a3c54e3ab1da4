"""The table of verbs with their descriptions, and the text of `mmtune --help`."""

VERBS = {
    "demo": "run the whole workflow on generated data: a product catalog and machine sounds",
    "init": "write a commented recipe to start from, or the JSON Schema of recipes",
    "pairs": "make pairs and graded judgments of click logs, labels, catalogs, duplicates, annotations",
    "pack": "check a CSV/TSV/JSONL/Parquet table or a folder, and pack it as WebDataset shards",
    "recipe": "validate a recipe, show it with every default, compare two, or explain a key",
    "train": "train a model as a recipe describes; writes checkpoints, metrics and an artifact",
    "sweep": "search for the best values of recipe keys: many runs, pruned by validation, and a report",
    "bench": "measure how fast a recipe trains on this machine, and find the bottleneck",
    "soup": "average the weights of several trained models into one model (a model soup)",
    "embed": "write the embeddings and ids of packed data as Parquet",
    "eval": "compute retrieval metrics in every direction, or the metrics of another task",
    "predict": "class, nearest known examples and anomaly score of unlabelled files or rows",
    "mine": "mine hard negatives, with guards against false negatives and an audit report",
    "label": "ask people whether pairs match, on a page; what is asked is chosen; answers are judgments",
    "doctor": "find data leaks, duplicates, broken files, suspect labels, a collapsed model",
    "advise": "recommend whether and how to tune a model, and estimate the cost of re-indexing",
    "compare": "compare two models on the same queries, with confidence intervals and a gate",
    "index": "build, search, promote and roll back versions of a collection (a vector index)",
    "serve": "serve the search of a collection over HTTP: a REST API and a search page",
    "export": "write a model for transformers, open_clip, sentence-transformers, peft, ONNX, OpenVINO, TorchScript",
    "report": "write a self-contained HTML report: verdict, learning curves, example searches",
    "completion": "print a script that lets bash, zsh or fish complete verbs, options and file names",
}


def usage() -> str:
    """Return the text of `mmtune --help`."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {v:<{width}}{text}" for v, text in VERBS.items())
    return (
        "usage: mmtune VERB [options]\n\n"
        "Tune CLIP/CLAP-type dual encoders on your own images, sounds and texts, measure the gain, and deploy the new model.\n\n"
        f"{verbs}\n\n"
        "`mmtune VERB --help` explains a verb. Every verb accepts --json (print one JSON document) and --debug (show tracebacks).\n"
        "MODEL: an artifact (a directory that `mmtune train` wrote), hf:NAME_OR_DIR, open_clip:NAME/TAG_OR_DIR, timm:NAME,\n"
        "       st:NAME, beats:FILE, onnx:FILE, tflite:FILE, tiny:NAME, or one encoder per modality (MODALITY=MODEL,MODALITY=MODEL).\n"
        "DATA: a directory of WebDataset shards (see `mmtune pack`), a tar file, a brace pattern, or an fsspec URL of one of\n"
        "      these.\n"
        "Example: mmtune demo\n"
    )
