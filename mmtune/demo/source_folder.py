"""A source folder as a user would have one: files, and one CSV a split that names them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmtune.runtime import files


class Source:
    """Collects the rows of a source folder. The CSV files come last, so a folder that has them is complete."""

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self.rows: dict[str, list[dict[str, str]]] = {}

    def file(self, name: str, data: bytes) -> str:
        """Write one file below the folder; returns its relative name, for a cell."""
        path = self.out / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)  # not atomic on purpose: a thousand fsyncs cost more than drawing again, and the CSV vouches
        return name

    def add(self, split: str, row: Mapping[str, object]) -> None:
        """One row of `split`.csv."""
        self.rows.setdefault(split, []).append({k: str(v) for k, v in row.items()})

    def close(self) -> Path:
        """Publish `SPLIT.csv` for every split; returns the folder."""
        for split, rows in self.rows.items():
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            files.write_text(self.out / f"{split}.csv", text.getvalue())
        return self.out


def rng_of(seed: int, *key: int) -> np.random.Generator:
    """A generator of its own for one thing that is drawn: its look does not depend on how many others are drawn."""
    return np.random.default_rng([seed, *key])
