"""MODEL and DATA as users name them -> the objects that evaluation works on."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model


def as_model(model: "Model | str | Path", dim: int | None = None) -> "Model":
    """The model, loaded when it is given by name; dim: with its first so many dimensions."""
    from mmtune.model.artifact.load import load

    loaded = load(model) if isinstance(model, str | Path) else model
    return loaded if dim is None else loaded.truncated(dim)


def as_data(data: "Data | str") -> "Data":
    """The data, opened when they are given by name."""
    from mmtune.data.shards.dataset import open_data

    return open_data(data) if isinstance(data, str) else data
