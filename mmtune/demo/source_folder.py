"""Write a source folder like those that users have: media files, and one CSV file per split that lists them."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmtune.runtime import files


class SourceFolder:
    """Writes files and collects rows. The CSV files are written last, so a folder that has them is complete."""

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self.rows: dict[str, list[dict[str, str]]] = {}

    def file(self, name: str, data: bytes) -> str:
        """Write one file into the folder. Returns its relative path, for a cell of the CSV file."""
        path = self.out / name
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)  # deliberately not atomic: a thousand fsyncs take longer than generating the files again
        return name

    def add(self, split: str, row: Mapping[str, object]) -> None:
        """Add one row to `split`.csv."""
        self.rows.setdefault(split, []).append({k: str(v) for k, v in row.items()})

    def close(self) -> Path:
        """Write SPLIT.csv for every split. Returns the folder."""
        for split, rows in self.rows.items():
            text = io.StringIO()
            writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            files.write_text(self.out / f"{split}.csv", text.getvalue())
        return self.out


def rng_of(seed: int, *key: int) -> np.random.Generator:
    """Return a random generator for the object `key`. What is drawn with it does not depend on how many objects are drawn."""
    return np.random.default_rng([seed, *key])
