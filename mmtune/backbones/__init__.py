"""Load pretrained encoders ("towers"), one per modality, from checkpoints of several model families.

A MODEL string has the form `family:checkpoint`:

    hf:DIR_OR_NAME                     a transformers checkpoint
    st:DIR_OR_NAME                     a sentence-transformers checkpoint
    timm:NAME, timm:NAME@FILE          an image tower of timm, with its own weights or those of a file
    beats:FILE                         a sound encoder of the BEATs family, from Microsoft's checkpoint
    onnx:FILE, tflite:FILE             a frozen encoder that another runtime executes
    open_clip:NAME/TAG                 a pretrained open_clip model
    open_clip:DIR                      an open_clip model in a directory
    tiny:NAME                          small untrained towers for tests and the demo
    package.module:CHECKPOINT          your own family: a module with the functions `load` and `rebuild`
    package.module:Class:CHECKPOINT    your own family: a class with the methods `load` and `rebuild`

A checkpoint is always loaded with its own preprocessing.

To write your own family, import from here: `Backbone`, `Tower`, `LogitScale`, `Family`, `Preprocess`, `register`.
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
    from mmtune.recipe.prompts_block import Prompts

__all__ = ["Backbone", "Family", "LogitScale", "ModelError", "Preprocess", "Tower", "load", "read_files", "rebuild", "register"]


@dataclass
class Tower:
    """The encoder of one modality.

    modality: its name
    dim: dimension of its embeddings
    preprocess: turns a decoded value into input tensors
    encode: maps the collated inputs of U items to embeddings [U, dim], which are not normalised
    modules: the modules that hold the tower's parameters
    token_mask: maps the collated inputs to bool [U, T], False for padding tokens; None means the input `attention_mask`, or that
        there is no padding
    """

    modality: str
    dim: int
    preprocess: Preprocess
    encode: "Callable[[dict[str, Tensor]], Tensor]"
    modules: "list[nn.Module]"
    token_mask: "Callable[[dict[str, Tensor]], Tensor] | None" = None


@dataclass
class LogitScale:
    """A learned logit scale (inverse temperature): logits = exp(log) * cosine + bias.

    log: the logarithm of the scale
    bias: the logit bias of sigmoid checkpoints (SigLIP); None for all others
    directions: the directed pairs "a->b" that use this logit scale
    """

    log: "nn.Parameter"
    bias: "nn.Parameter | None"
    directions: list[str]


def _keep_tower(modality: str) -> None:
    """Do nothing. Default of `Backbone.free_tower`, for families that cannot free a single tower."""


def _keep_attention(device: str, low_precision: bool) -> None:
    """Do nothing. Default of `Backbone.select_attention`, for families with only one attention implementation."""


@dataclass
class Backbone:
    """A loaded checkpoint: its towers, its logit scales and its files.

    family: the family's key in TABLE
    module: the module that holds all weights, under the names that the upstream library gives them
    towers: the tower of each modality
    logit_scales: the logit scales of the pairs that the checkpoint was trained on
    files: configuration, preprocessing and tokenizer files by relative path; `Family.rebuild` needs only these, no weights
    free_tower: called with a modality; frees the weights of a tower that the model does not use
    select_attention: called with (device type, whether training runs in low precision) before training, to select the attention
        implementation with the fastest backward pass; called with ("", False) after training, to restore the default
    info: facts about the checkpoint for reports, e.g. {"untrained": True}
    use_cpu_kernels: whether `cpu_fast` may replace layers of `module`
    prompts: the checkpoint's own prompt templates, {text modality: {role: templates}} (see `mmtune.model.prompts`)
    first_token_encoders: encoders in `module` of whose last block the towers use only the first token's output
    files_of_format_1: returns the files that fingerprints of the format mm1 were computed from; None means `files`
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
    files_of_format_1: Callable[[], dict[str, bytes]] | None = None
    prompts: "Prompts" = field(default_factory=dict)


class Family(Protocol):
    """The interface of a model family: the two functions (or methods) that each module or class in TABLE has."""

    def load(self, checkpoint: str, /) -> Backbone:
        """Load a checkpoint (a directory or a hub name) with its weights. Raises ModelError if it cannot be loaded."""
        ...

    def rebuild(self, directory: Path, /) -> Backbone:
        """Build the backbone with uninitialised weights; `directory` contains the files of `Backbone.files`."""
        ...


TABLE: dict[str, str] = {
    "hf": "mmtune.backbones.hf",
    "open_clip": "mmtune.backbones.open_clip",
    "st": "mmtune.backbones.st",
    "timm": "mmtune.backbones.timm",
    "beats": "mmtune.backbones.beats",
    "onnx": "mmtune.backbones.onnx",
    "tflite": "mmtune.backbones.tflite",
    "tiny": "mmtune.backbones.tiny",
}
"""Name of each family -> the module ("package.module") or class ("package.module:Class") that implements `Family`."""


def register(name: str, target: str) -> None:
    """Register your own model family under `name`.

    target: "package.module" or "package.module:Class"; installed packages and the working directory are searched. The backbones
        that it returns must have `name` as their `Backbone.family`.
    """
    plugins.register(TABLE, name, target, "model family")


def implementation(name: str) -> Family:
    """Return the implementation of a model family, by its name in TABLE."""
    found = plugins.import_target(TABLE[name], "model family", error=ModelError)
    return found() if isinstance(found, type) else found


def load(spec: str, cpu_kernels: "CpuKernels" = "auto") -> Backbone:
    """Load the checkpoint of a MODEL string.

    spec: "family:checkpoint". A family that is not in TABLE is imported as `package.module` and added to TABLE. After that,
        artifacts that use the family can be loaded in the same process, too.
    cpu_kernels: "auto" replaces layers by the faster ones of `cpu_fast`; "off" leaves the modules of the upstream library as
        they are

    Raises ModelError if the family is unknown (the message lists similar names) or if a file of the checkpoint is missing.
    """
    family, colon, checkpoint = spec.partition(":")
    if not colon or not checkpoint:
        raise ModelError(
            f"{spec!r} is not a MODEL: write an artifact directory, hf:NAME_OR_DIR, open_clip:NAME/TAG_OR_DIR or tiny:NAME"
        )
    if family not in TABLE:
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", family):
            raise ModelError(f"no model family {family!r}{plugins.nearest(family, TABLE)}")
        attribute, colon, rest = checkpoint.partition(":")
        target, checkpoint = (f"{family}:{attribute}", rest) if colon and attribute.isidentifier() else (family, checkpoint)
        try:
            plugins.import_target(target, "model family", error=ModelError)
        except ModelError as e:
            raise ModelError(f"no model family {family!r}{plugins.nearest(family, TABLE)} ({e})") from None
        TABLE[target] = target
        family = target
    return _with_kernels(implementation(family).load(checkpoint), cpu_kernels)


def rebuild(family: str, directory: Path, cpu_kernels: "CpuKernels" = "auto") -> Backbone:
    """Build a backbone with uninitialised weights from the files in `directory`; the caller loads the weights.

    family: a key of TABLE. Unlike `load`, this function never imports an unknown family, because the name comes from a file
        (the manifest of an artifact), and no file may decide which code is imported.
    cpu_kernels: as in `load`

    Raises ModelError if the family is not in TABLE.
    """
    if family not in TABLE:
        raise ModelError(
            f"{directory}: its model family {family!r} is not registered{plugins.nearest(family, TABLE)}; if its code is "
            "yours, "
            f'call mmtune.backbones.register("{family}", "package.module:Class") first'
        )
    return _with_kernels(implementation(family).rebuild(directory), cpu_kernels)


def _with_kernels(backbone: Backbone, cpu_kernels: "CpuKernels") -> Backbone:
    if backbone.use_cpu_kernels and cpu_kernels != "off":
        from mmtune.backbones import cpu_fast

        cpu_fast.apply(backbone.module, backbone.first_token_encoders)
    return backbone
