"""Families of pretrained towers. A MODEL string names a family and a place: `hf:DIR_OR_NAME`, `open_clip:NAME/TAG_OR_DIR`,
`tiny:NAME`, or `package.module:function` for out-of-tree code. Weights never come without their own preprocessing.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.contracts import Preprocess
from mmtune.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

TABLE = {
    "hf": "mmtune.backbones.hf",
    "open_clip": "mmtune.backbones.open_clip",
    "tiny": "mmtune.backbones.tiny",
}
"""Family -> module with `load(place) -> Part` (weights and all) and `rebuild(directory) -> Part` (weights uninitialised)."""


@dataclass
class Tower:
    """One encoder of a part: `encode(inputs of U items) -> [U, dim]`, not normalised. `modules` own its parameters."""

    modality: str
    dim: int
    preprocess: Preprocess
    encode: "Callable[[dict[str, Tensor]], Tensor]"
    modules: "list[nn.Module]"


@dataclass
class Scale:
    """A learned temperature: logits = exp(log) * cosine + bias. `directions` it serves; `bias` means a sigmoid checkpoint."""

    log: "nn.Parameter"
    bias: "nn.Parameter | None"
    directions: list[str]


@dataclass
class Part:
    """A family's loaded checkpoint.

    module holds every weight under upstream's own names; towers by modality; scales of the pairs it was trained on;
    files are its configuration, preprocessing and tokenizer (no weights), enough for `rebuild`; `drop(modality)` frees
    the weights of a tower that a composed model does not use; `training_on(device, low precision)` picks the attention
    whose backward is fast there, `training_on("", False)` goes back to the one for inference.
    """

    family: str
    module: "nn.Module"
    towers: dict[str, Tower]
    scales: list[Scale]
    files: dict[str, bytes]
    drop: "Callable[[str], None]" = lambda modality: None
    training_on: "Callable[[str, bool], None]" = lambda device, low_precision: None
    facts: dict[str, Any] = field(default_factory=dict)


def _family(name: str) -> Any:
    if name in TABLE:
        return importlib.import_module(TABLE[name])
    try:
        return importlib.import_module(name)
    except ImportError as e:
        raise ModelError(
            f"no model family {name!r}; known: {', '.join(f'{f}:' for f in TABLE)} or package.module: ({e})"
        ) from None


def load(spec: str) -> Part:
    """The part that `spec` names. Raises ModelError naming the missing file or the known families."""
    family, colon, place = spec.partition(":")
    if not colon or not place:
        raise ModelError(
            f"{spec!r} is not a MODEL: write an artifact directory, hf:NAME_OR_DIR, open_clip:NAME/TAG_OR_DIR or tiny:NAME"
        )
    return _family(family).load(place)


def rebuild(family: str, directory: Path) -> Part:
    """A part from its files alone; the caller loads the weights into `part.module`."""
    return _family(family).rebuild(directory)


def read_files(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by its relative path."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}
