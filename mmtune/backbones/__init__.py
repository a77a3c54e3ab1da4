"""Families of pretrained towers. A MODEL string names a family and a place: `hf:DIR_OR_NAME`, `open_clip:NAME/TAG_OR_DIR`,
`tiny:NAME`, or for a family from outside `package.module:PLACE` (a module with `load` and `rebuild`) and
`package.module:Class:PLACE`. Weights never come without their own preprocessing.

What the author of a family needs is importable from here: `Backbone`, `Tower`, `LogitScale`, `Family`, `Preprocess`, `register`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mmtune.backbones.checkpoint_files import read_files
from mmtune.contracts import Preprocess
from mmtune.errors import ModelError
from mmtune.runtime import plugins

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mmtune.backbones.cpu_fast import CpuKernels

__all__ = ["Backbone", "Family", "LogitScale", "ModelError", "Preprocess", "Tower", "load", "read_files", "rebuild", "register"]


@dataclass
class Tower:
    """The encoder of one modality: `encode(inputs of U items) -> [U, dim]`, not normalised. `modules` own its parameters."""

    modality: str
    dim: int
    preprocess: Preprocess
    encode: "Callable[[dict[str, Tensor]], Tensor]"
    modules: "list[nn.Module]"


@dataclass
class LogitScale:
    """A learned inverse temperature: logits = exp(log) * cosine + bias. `directions` that it serves; only sigmoid checkpoints
    (SigLIP) have a `bias`."""

    log: "nn.Parameter"
    bias: "nn.Parameter | None"
    directions: list[str]


def _keep_tower(modality: str) -> None:
    """Frees nothing: for families whose towers share no module with another one."""


def _keep_attention(device: str, low_precision: bool) -> None:
    """For families with one implementation of attention."""


@dataclass
class Backbone:
    """A loaded checkpoint: its towers, its learned scales and its files.

    family: the key in TABLE; module: every weight under upstream's own names; towers by modality; logit_scales of the pairs it
    was trained on; files: configuration, preprocessing and tokenizer (no weights), enough for `Family.rebuild`;
    free_tower(modality): release the weights of a tower that a composed model does not use; select_attention(device,
    low_precision): use the attention implementation whose backward is fastest there, ("", False) selects the one for inference
    again; info: facts about the checkpoint for reports, e.g. {"untrained": True}; use_cpu_kernels: whether `cpu_fast` may
    replace layers of `module`; first_token_encoders: encoders within it of whose last block the towers use only the first token.
    """

    family: str
    module: "nn.Module"
    towers: dict[str, Tower]
    logit_scales: list[LogitScale]
    files: dict[str, bytes]
    free_tower: Callable[[str], None] = _keep_tower
    select_attention: Callable[[str, bool], None] = _keep_attention
    info: dict[str, object] = field(default_factory=dict)
    use_cpu_kernels: bool = False
    first_token_encoders: "list[nn.Module]" = field(default_factory=list)


class Family(Protocol):
    """What a module or class in TABLE provides."""

    def load(self, place: str) -> Backbone:
        """The checkpoint at `place` (a directory or a hub name), with weights. Raises ModelError."""
        ...

    def rebuild(self, directory: Path) -> Backbone:
        """The same towers from `Backbone.files` written to `directory`, with weights uninitialised."""
        ...


TABLE: dict[str, str] = {
    "hf": "mmtune.backbones.hf",
    "open_clip": "mmtune.backbones.open_clip",
    "tiny": "mmtune.backbones.tiny",
}
"""Family -> module (or "package.module:Class") with the functions of `Family`."""


def register(name: str, target: str) -> None:
    """Add a family from outside: `target` is "package.module" or "package.module:Class", searched for in the working directory
    too. Its `Backbone.family` must equal `name`."""
    plugins.register(TABLE, name, target, "model family")


def _family(name: str) -> Family:
    part = plugins.import_target(TABLE[name], "model family", error=ModelError)
    return part() if isinstance(part, type) else part


def load(spec: str, cpu_kernels: "CpuKernels" = "auto") -> Backbone:
    """The checkpoint that `spec` names. Raises ModelError naming the missing file or the known families.

    cpu_kernels: "auto" uses the faster layers of `cpu_fast`, "off" leaves upstream's modules as they are.
    A family that is not in TABLE is imported from `package.module` and added to it, so that artifacts of its towers can be
    loaded later in the same process.
    """
    family, colon, place = spec.partition(":")
    if not colon or not place:
        raise ModelError(
            f"{spec!r} is not a MODEL: write an artifact directory, hf:NAME_OR_DIR, open_clip:NAME/TAG_OR_DIR or tiny:NAME"
        )
    if family not in TABLE:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", family):
            raise ModelError(f"no model family {family!r}{plugins.nearest(family, TABLE)}")
        attribute, colon, rest = place.partition(":")
        target, place = (f"{family}:{attribute}", rest) if colon and attribute.isidentifier() else (family, place)
        try:
            plugins.import_target(target, "model family", error=ModelError)
        except ModelError as e:
            raise ModelError(f"no model family {family!r}{plugins.nearest(family, TABLE)} ({e})") from None
        TABLE[target] = target
        family = target
    return _with_kernels(_family(family).load(place), cpu_kernels)


def rebuild(family: str, directory: Path, cpu_kernels: "CpuKernels" = "auto") -> Backbone:
    """A backbone from its files alone; the caller loads the weights into `Backbone.module`.

    cpu_kernels: as in `load`. The family must be in TABLE: an artifact's manifest names it, and a file must never decide what is imported.
    """
    if family not in TABLE:
        raise ModelError(
            f"{directory}: its model family {family!r} is not registered{plugins.nearest(family, TABLE)}; if its code is yours, "
            f'call mmtune.backbones.register("{family}", "package.module:Class") first'
        )
    return _with_kernels(_family(family).rebuild(directory), cpu_kernels)


def _with_kernels(backbone: Backbone, cpu_kernels: "CpuKernels") -> Backbone:
    if backbone.use_cpu_kernels and cpu_kernels != "off":
        from mmtune.backbones import cpu_fast

        cpu_fast.apply(backbone.module, backbone.first_token_encoders)
    return backbone
