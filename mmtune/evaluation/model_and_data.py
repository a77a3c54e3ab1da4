"""Load a model or open a dataset that may be given by name or as an object."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune.data.shards.locate import JUDGMENTS
from mmtune.errors import DataWarning

if TYPE_CHECKING:
    from mmtune.data.in_memory import DataLike
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


def as_model(model: "Model | str | Path | Mapping[str, str]", dim: int | None = None) -> "Model":
    """Return the model, loaded if it is a name, a path or {modality: name}. dim: truncate its embeddings to the first `dim` dimensions."""
    from mmtune.model.artifact.load import load

    loaded = load(model) if isinstance(model, str | Path | Mapping) else model
    return loaded if dim is None else loaded.truncated(dim)


def as_data(data: "DataLike", skip_bad: bool = False) -> "Data":
    """Return the dataset, opened if it is a name or rows in memory. skip_bad: leave out values that cannot be decoded."""
    from mmtune.data.skip_bad import open_rows_to_encode

    return open_rows_to_encode(data, skip_bad=skip_bad)


def warn_unused_judgments(data: "Data") -> None:
    """Issue a DataWarning if graded judgments lie beside the shards, which an evaluation without `qrels` does not use."""
    for folder in dict.fromkeys(Path(s.path).parent for s in data.shards):
        if (path := folder / JUDGMENTS).exists():
            warnings.warn(
                f"{path}: the scores that were packed are not used, every row's own pair counts as relevant; give qrels={path}",
                DataWarning,
                stacklevel=3,
            )
