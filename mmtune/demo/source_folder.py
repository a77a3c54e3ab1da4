"""A source folder as a user has one: files, and one CSV for each split that names them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmtune.runtime import files


class SourceFolder:
    """Collects the rows of a source folder. The CSV files are written last, so a folder that has them is complete."""

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self.rows: dict[str, list[dict[str, str]]] = {}

    def file(self, name: str, data: bytes) -> str:
        """Write one file below the folder; returns its relative name, for a cell of the CSV."""
        path = self.out / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)  # not atomic on purpose: a thousand fsyncs cost more than drawing again
        return name

    def add(self, split: str, row: Mapping[str, object]) -> None:
        """Add one row to `split`.csv."""
        self.rows.setdefault(split, []).append({k: str(v) for k, v in row.items()})

    def close(self) -> Path:
        """Write `SPLIT.csv` of every split; returns the folder."""
        for split, rows in self.rows.items():
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            files.write_text(self.out / f"{split}.csv", text.getvalue())
        return self.out


def rng_of(seed: int, *key: int) -> np.random.Generator:
    """A random generator for one drawn thing; its look does not depend on how many other things are drawn."""
    return np.random.default_rng([seed, *key])
