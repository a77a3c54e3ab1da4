"""Runs to report on: tiny models trained for real on squares of a colour, tones of a pitch, and the words for them."""

from pathlib import Path

import mmtune
from tests import corpora


def run(root: Path, columns: tuple[str, ...], model: str = "tiny:clip", epochs: int = 6, **changes) -> Path:
    """A finished RUN directory."""
    directory = root / f"run-{'-'.join(columns)}"
    recipe = {
        "model": model,
        "data": {"train": corpora.packed(root, columns=columns), "val": corpora.packed(root, 18, 1, columns)},
        "train": {"epochs": epochs, "batch_size": 8, "lr": 1e-3, "warmup": 0.1, "precision": "fp32"},
        "run": {"dir": str(directory)},
        **changes,
    }
    mmtune.train(recipe, quiet=True)
    return directory
