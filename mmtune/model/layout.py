"""What is needed, beside weights and files, to build a model again, as it is stored in manifests and hashed in fingerprints."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from mmtune.contracts import JsonObject
from mmtune.recipe.prompts_block import Prompts


class Settings(TypedDict, total=False):
    """Choices that change vectors without changing weights. A missing key is the default.

    dim: length that vectors are truncated to; prompts: templates around texts; window_pooling: "max" for modalities whose windows
    are pooled by the maximum.
    """

    dim: int
    prompts: Prompts
    window_pooling: dict[str, str]


_RENAMED = {"window_pooling": "windows"}
"""Settings' keys of today -> as they were called when the fingerprint's format was fixed."""


def read_settings(document: Mapping[str, object]) -> Settings:
    """Settings from a stored file; keys that have been renamed since are read, too."""
    names = {old: new for new, old in _RENAMED.items()}
    return {names.get(k, k): v for k, v in document.items()}  # type: ignore[return-value]


@dataclass
class BackboneEntry:
    """One backbone of a model: its family and which of its towers are in use."""

    family: str
    modalities: list[str]


@dataclass
class Layout:
    """backbones in order; dim: width of the shared space; heads: modalities with a linear head; own_scales: pairs "a~b" with a
    logit scale that no checkpoint brought; settings."""

    backbones: list[BackboneEntry]
    dim: int
    heads: list[str] = field(default_factory=list)
    own_scales: list[str] = field(default_factory=list)
    settings: Settings = field(default_factory=lambda: Settings())

    def to_json(self) -> JsonObject:
        """As it is stored in an artifact's manifest."""
        return {
            "parts": [{"family": b.family, "modalities": b.modalities} for b in self.backbones],
            "dim": self.dim,
            "heads": self.heads,
            "own_scales": self.own_scales,
            "settings": self.settings,
        }

    def to_hash(self) -> JsonObject:
        """As it goes into the fingerprint, whose format never changes: with the keys that it was fixed with."""
        settings = {_RENAMED.get(k, k): v for k, v in self.settings.items()}
        return self.to_json() | {"settings": settings}

    @classmethod
    def from_json(cls, document: JsonObject) -> "Layout":
        """From a manifest. Raises KeyError, TypeError or ValueError for a document of another form."""
        entries = [BackboneEntry(str(e["family"]), [str(m) for m in e["modalities"]]) for e in document["parts"]]
        heads, scales = (list(map(str, document[key])) for key in ("heads", "own_scales"))
        return cls(entries, int(document["dim"]), heads, scales, read_settings(document["settings"]))
