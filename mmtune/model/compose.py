"""A model from one checkpoint, or from one tower each of several checkpoints."""

from collections.abc import Mapping

from mmtune import backbones, modalities
from mmtune.backbones import Backbone
from mmtune.backbones.cpu_fast import CpuKernels
from mmtune.errors import ModelError
from mmtune.model.dual_encoder import Model


def from_backbones(specs: Mapping[str, Backbone], seed: int = 0) -> Model:
    """A model from a backbone for each modality (the same one may serve several).

    The width of the shared space is that of the anchor tower: the first language modality, else the first modality. seed: of the
    linear heads that towers of another width get. Raises ModelError for a backbone without the tower.
    """
    order = [m for m in modalities.names() if m in specs]
    for m in order:
        if m not in specs[m].towers:
            raise ModelError(f"model.{m}: that checkpoint has no {m} tower; it has {', '.join(specs[m].towers)}")
    anchor = next((m for m in order if modalities.get(m).language), order[0])
    used: list[tuple[Backbone, list[str]]] = []
    for m in order:
        names = next((names for b, names in used if b is specs[m]), None)
        if names is None:
            used.append((specs[m], [m]))
        else:
            names.append(m)
    for backbone, names in used:
        for unused in set(backbone.towers) - set(names):
            backbone.free_tower(unused)
    return Model(used, specs[anchor].towers[anchor].dim, seed=seed)


def parse_spec(spec: str) -> str | dict[str, str]:
    """`family:place` as it is, and "name=family:place,name=..." as {name: "family:place"}."""
    if "=" not in spec.split(":", 1)[0]:
        return spec
    entries = [e.partition("=") for e in spec.split(",")]
    return {name.strip(): place.strip() for name, _, place in entries}


def from_spec(spec: str | Mapping[str, str], cpu_kernels: CpuKernels = "auto") -> Model:
    """A model from `family:place`, or from {modality: "family:place"} (also as "name=family:place,name=...")."""
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if isinstance(spec, str):
        backbone = backbones.load(spec, cpu_kernels)
        return from_backbones(dict.fromkeys(backbone.towers, backbone))
    for m in spec:
        modalities.get(m)
    loaded = {place: backbones.load(place, cpu_kernels) for place in dict.fromkeys(spec.values())}
    return from_backbones({m: loaded[place] for m, place in spec.items()})
