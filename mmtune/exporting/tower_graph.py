"""One tower of a model as a module from input tensors to finished vectors, to be recorded by an exporter of graphs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtune.backbones.checkpoint_files import Untyped
from mmtune.errors import ModelError
from mmtune.model.truncate import truncate

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

Encode: TypeAlias = Callable[[dict[str, Tensor]], Tensor]
OUTPUT = "vector"


class TowerGraph(nn.Module):
    """The inputs of a tower, one tensor each -> L2-normalised vectors [N, D] float32: tower, head, truncation, normalisation."""

    def __init__(self, model: "Model", modality: str, names: Sequence[str], features: nn.Module | None):
        """names: names of the inputs, in their order; features: computes the tower's inputs from these, or None"""
        super().__init__()
        self.tower_modules = nn.ModuleList(model.modules_of(modality))  # so that exporters see the parameters
        self.features = features
        self.encode, self.modality, self.dim, self.names = model.towers[modality].encode, modality, model.dim, list(names)
        self.head = model.heads[modality] if modality in model.heads else nn.Identity()

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs = dict(zip(self.names, tensors, strict=True))
        if self.features is not None:
            inputs = self.features(*tensors)
        z = F.normalize(self.head(self.encode(inputs)).float(), dim=-1)
        return truncate({self.modality: z}, self.dim)[self.modality]


@dataclass
class Recording:
    """A tower with the inputs by which it is recorded.

    graph: the tower
    batches: the collated inputs of two batches of different sizes; axes that differ between them are dynamic
    """

    graph: TowerGraph
    batches: tuple[dict[str, Tensor], dict[str, Tensor]]

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return self.graph.names

    def dynamic_axes(self) -> list[list[int]]:
        """Return the axes of each input that may have any length."""
        a, b = self.batches
        return [[i for i in range(a[n].ndim) if a[n].shape[i] != b[n].shape[i]] for n in self.names]


def record(model: "Model", modality: str, signals: Sequence[object], mel_inside: bool) -> Recording:
    """Preprocess example signals and build the graph of a tower.

    signals: three decoded signals
    mel_inside: whether the graph computes spectrograms from samples

    Raises ModelError if `mel_inside` is asked for and the tower takes no spectrogram, or computes it by a library.
    """
    preprocess: Untyped = model.towers[modality].preprocess
    features, collate = None, lambda group: preprocess.collate([preprocess(s) for s in group])
    if mel_inside and hasattr(preprocess, "windows"):
        if not hasattr(preprocess, "feature_graph"):
            raise ModelError(
                f"export: --mel inside: the {modality} tower gets its input from {type(preprocess).__name__}, which mmtune cannot "
                "put into a graph; leave it out, and the input is what the checkpoint's feature extractor returns"
            )
        features, collate = preprocess.feature_graph(), preprocess.raw_inputs
    batches = [collate(list(group)) for group in (signals[:2], [signals[0], signals[2], signals[0]])]
    first, second = ({k: v for k, v in batch.items() if k != "segments"} for batch in batches)
    return Recording(TowerGraph(model, modality, list(first), features).eval(), (first, second))


def runtime_model(model: "Model", encoders: Mapping[str, Encode], raw: Sequence[str] = ()) -> "Model":
    """Return a model whose towers are computed by other functions: those of exported graphs.

    encoders: {modality: function from input tensors to finished vectors}
    raw: modalities whose graphs take samples
    """
    from mmtune.backbones import Tower
    from mmtune.model.dual_encoder import Model

    towers: dict[str, Tower] = {}
    for m, encode in encoders.items():
        preprocess = model.towers[m].preprocess
        towers[m] = Tower(m, model.dim, _Raw(preprocess) if m in raw else preprocess, encode, [])
    built = Model([], model.dim)
    built.towers = towers
    built.settings = {k: v for k, v in model.settings.items() if k != "dim"}  # type: ignore[assignment]  # its other keys
    return built.eval()


class _Raw:
    """A Preprocess that gives the samples of a signal's windows."""

    def __init__(self, inner: Untyped):
        self.inner = inner

    def __call__(self, signal: object, rng: object = None) -> dict[str, Tensor]:
        found: dict[str, Tensor] = self.inner.raw_inputs([signal])
        return found

    def windows(self, item: dict[str, Tensor]) -> int:
        """Return the number of windows of an item."""
        return len(item["samples"])

    def collate(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Concatenate windows; "segments" is the item of each."""
        samples = torch.cat([i["samples"] for i in items])
        counts = torch.tensor([len(i["samples"]) for i in items])
        inputs = {"samples": samples}
        if len(samples) > len(items):
            inputs["segments"] = torch.repeat_interleave(torch.arange(len(items)), counts)
        return inputs


def write_tower_files(model: "Model", modality: str, directory: Path) -> None:
    """Write the tokenizer and preprocessing files of a tower's checkpoint into its folder."""
    from mmtune.runtime.files import write_bytes

    for backbone, names in model.backbones:
        if modality in names:
            for name, data in backbone.files.items():
                write_bytes(directory / name, data)
