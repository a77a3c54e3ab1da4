"""Features of pretrained towers for `mmtune bench quality`: each tower runs once over each set, and its outputs are stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from mmtune import modalities
from mmtune.contracts import Embeddings
from mmtune.data.shards.dataset import open_data
from mmtune.embedding.feature_cache import FEATURES, shared_features, tower_features
from mmtune.errors import DataError
from mmtune.relevance.items import names_to_labels, take_rows
from mmtune.search.vectors import normalize_rows

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


class Sides(NamedTuple):
    """The two modalities of a set: `signal` is classified and searched, `language` describes it."""

    signal: str
    language: str


@dataclass
class QualityData:
    """One set of the benchmark.

    name: as the user gave it
    train, val: its packed rows: those that are trained on, and those that are scored
    sides: its two modalities
    """

    name: str
    train: "Data"
    val: "Data"
    sides: Sides
    directory: Path

    @property
    def rows(self) -> np.ndarray:
        """Positions of the training rows that have both modalities and a group."""
        both = self.train.present[self.sides.signal] & self.train.present[self.sides.language]
        rows: np.ndarray = np.flatnonzero(both & (self.train.labels["group"] != 0))
        return rows


def open_set(name: str, directory: str | Path, towers: Mapping[str, object]) -> QualityData:
    """Open DIRECTORY/train and DIRECTORY/val, and find the two modalities that have a tower.

    Raises DataError if a part is missing, if there are not exactly two such modalities of which one is language, or if the
    rows have no groups, which are the classes of the linear probe and of the neighbours.
    """
    parts = []
    for part in ("train", "val"):
        path = Path(directory) / part
        if not path.is_dir():
            raise DataError(
                f"--data {name}={directory}: has no {part}; pack it: mmtune pack {part}.csv --out {path} --group COLUMN"
            )
        parts.append(open_data(str(path)))
    train, val = parts
    found = [m for m in towers if m in train.modalities and m in val.modalities]
    language = [m for m in found if modalities.get(m).language]
    if len(found) != 2 or len(language) != 1:
        raise DataError(
            f"--data {name}={directory}: needs rows of two modalities with a tower, one of them language; it has "
            f"{', '.join(train.modalities)}, and there are towers for {', '.join(towers)}"
        )
    sides = Sides(next(m for m in found if m not in language), language[0])
    opened = QualityData(name, train, val, sides, Path(directory))
    if not len(opened.rows) or not (val.labels["group"] != 0).any():
        raise DataError(f"--data {name}={directory}: the rows have no groups; pack both parts with --group COLUMN")
    return opened


def features_of(model: "Model", quality_data: QualityData, cache: Path, quiet: bool) -> dict[str, dict[str, Embeddings]]:
    """Return {part: {modality: outputs of its tower}}, not normalised, from the files in `cache` or computed into them.

    The output of a long value is the mean over its windows. Inside `share_features` the outputs of all windows are shared.
    """
    result: dict[str, dict[str, Embeddings]] = {}
    for part, data in (("train", quality_data.train), ("val", quality_data.val)):
        result[part] = {}
        for m in quality_data.sides:
            rows = np.flatnonzero(data.present[m])
            content, first, inverse = np.unique(data.labels[m][rows], return_index=True, return_inverse=True)
            path = cache / f"{part}-{m}.npz"
            if not path.is_file():
                tower = model.towers[m]
                computed = list(tower_features(tower, tower.preprocess, data, rows[first].tolist(), model.device, quiet))
                _save(path, torch.cat(computed).numpy(), np.array([len(c) for c in computed]))
            with np.load(path) as file:
                outputs = torch.from_numpy(file["outputs"]).split(file["windows"].tolist())
            shared = shared_features(m)
            if shared is not None:
                shared |= {int(c): {FEATURES: o} for c, o in zip(content, outputs, strict=True)}
            values = np.stack([o.mean(0).numpy() for o in outputs])
            labels = {k: v[rows] for k, v in data.labels.items()}
            result[part][m] = Embeddings(data.ids.take(rows), data.groups.take(rows), labels, values[inverse])
    return result


def _save(path: Path, outputs: np.ndarray, windows: np.ndarray) -> None:
    """Write the outputs of all windows [W, C], and the number of windows of each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, outputs=outputs, windows=windows)
    part.replace(path)


def draw_shots(groups: Sequence[str | None], shots: int, seed: int) -> np.ndarray:
    """Positions of at most `shots` rows of each group, drawn with `seed`, in ascending order."""
    rng = np.random.default_rng(seed)
    names = np.array(["" if g is None else g for g in groups])
    drawn = []
    for name in sorted(set(names.tolist()) - {""}):
        rows = np.flatnonzero(names == name)
        drawn.append(rng.permutation(rows)[:shots])
    return np.sort(np.concatenate(drawn))


def candidates(train: Embeddings, val: Embeddings) -> Embeddings:
    """The language side of the evaluation: the values of both parts, so that every class of the training set is a candidate."""
    ids = [f"train {i}" for i in train.ids] + list(val.ids)  # an id may occur in both parts without being the same row
    labels = {k: np.concatenate([train.labels[k], val.labels[k]]) for k in train.labels if k in val.labels}
    labels["id"] = names_to_labels(ids)
    both = Embeddings(ids, [*train.groups, *val.groups], labels, np.concatenate([train.vectors, val.vectors]))
    classes = np.flatnonzero(both.labels["group"] != 0)
    return take_rows(both, classes)


def with_vectors(e: Embeddings, vectors: np.ndarray) -> Embeddings:
    """The same rows with other vectors, which are L2-normalised."""
    labels = {**e.labels, "id": names_to_labels(e.ids)}
    return Embeddings(e.ids, e.groups, labels, normalize_rows(vectors))
