"""The layout of a model: everything that is needed to rebuild it, apart from weights and files.

It is stored in the manifest of an artifact and is part of the fingerprint.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from mmtune.contracts import JsonObject
from mmtune.model.heads import HeadKind
from mmtune.recipe.prompts_block import Prompts


class Settings(TypedDict, total=False):
    """Settings that change embeddings without changing weights. A missing key means its default.

    dim: dimension to which embeddings are truncated; default: not truncated
    prompts: prompt templates, {modality: {role: templates}}; default: none
    window_pooling: {modality: "max"} if the embeddings of windows are pooled by their maximum; default: by their mean
    """

    dim: int
    prompts: Prompts
    window_pooling: dict[str, str]


_RENAMED = {"window_pooling": "windows"}
"""Keys of `Settings` that have been renamed -> their old names. Fingerprints are still computed with the old names, because a
fingerprint must never change."""


def read_settings(document: Mapping[str, object]) -> Settings:
    """Read settings from a stored file, with the current or the old names of the keys."""
    names = {old: new for new, old in _RENAMED.items()}
    return {names.get(k, k): v for k, v in document.items()}  # type: ignore[return-value]


@dataclass
class BackboneEntry:
    """One backbone of a model: its family, and the modalities whose towers the model uses."""

    family: str
    modalities: list[str]


@dataclass
class Layout:
    """The layout of a model.

    backbones: the backbones in their order
    dim: dimension of the shared space, before truncation
    heads: modalities with a linear head
    added_logit_scales: pairs of modalities, written "a~b", with a logit scale that is not from a checkpoint
    settings: the settings of the model
    head_kinds: {modality: structure} of those heads that are not linear layers without bias
    """

    backbones: list[BackboneEntry]
    dim: int
    heads: list[str] = field(default_factory=list)
    added_logit_scales: list[str] = field(default_factory=list)
    settings: Settings = field(default_factory=lambda: Settings())
    head_kinds: dict[str, HeadKind] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """Convert the layout to the JSON object that is stored in an artifact's manifest."""
        kinds = {m: kind.to_json() for m, kind in self.head_kinds.items()}
        return {
            **({"head_kinds": kinds} if kinds else {}),  # no key, and so the same fingerprint, for models without such heads
            "parts": [{"family": b.family, "modalities": b.modalities} for b in self.backbones],
            "dim": self.dim,
            "heads": self.heads,
            "own_scales": self.added_logit_scales,
            "settings": self.settings,
        }

    def to_hash(self) -> JsonObject:
        """Convert the layout to the JSON object that is hashed in the fingerprint, with the old names of renamed keys."""
        settings = {_RENAMED.get(k, k): v for k, v in self.settings.items()}
        return self.to_json() | {"settings": settings}

    @classmethod
    def from_json(cls, document: JsonObject) -> "Layout":
        """Read the layout from a manifest. Raises KeyError, TypeError or ValueError if the document is not a valid layout."""
        entries = [BackboneEntry(str(e["family"]), [str(m) for m in e["modalities"]]) for e in document["parts"]]
        heads, scales = (list(map(str, document[key])) for key in ("heads", "own_scales"))
        kinds = {str(m): HeadKind.from_json(k) for m, k in document.get("head_kinds", {}).items()}
        return cls(entries, int(document["dim"]), heads, scales, read_settings(document["settings"]), kinds)
