"""Build a model from one checkpoint, or by combining towers of several checkpoints."""

from collections.abc import Mapping

from mmtune import backbones, modalities
from mmtune.backbones import Backbone
from mmtune.backbones.cpu_fast import CpuKernels
from mmtune.errors import ModelError
from mmtune.model.dual_encoder import Model


def from_backbones(specs: Mapping[str, Backbone], seed: int = 0) -> Model:
    """Build a model that takes the tower of each modality from the given backbone.

    The dimension of the shared space is that of the anchor tower: the tower of the first text modality (`language`) if there is
    one, else of the first modality. Towers of another dimension get a linear head.

    specs: {modality: backbone}; one backbone may appear for several modalities
    seed: random seed of the weights of the linear heads

    Raises ModelError if a backbone has no tower of the modality for which it is given.
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
    model = Model(used, specs[anchor].towers[anchor].dim, seed=seed)
    if prompts := {m: b.prompts[m] for b, names in used for m in names if m in b.prompts}:
        model.set_prompts(prompts)
    return model


def parse_spec(spec: str) -> str | dict[str, str]:
    """Parse a MODEL string: "modality=family:checkpoint,modality=..." becomes {modality: "family:checkpoint"}; any other string
    is returned unchanged."""
    if "=" not in spec.split(":", 1)[0]:
        return spec
    entries = [e.partition("=") for e in spec.split(",")]
    return {name.strip(): checkpoint.strip() for name, _, checkpoint in entries}


def from_spec(spec: str | Mapping[str, str], cpu_kernels: CpuKernels = "auto") -> Model:
    """Load the checkpoints of a MODEL and build a model from them.

    spec: "family:checkpoint", "modality=family:checkpoint,modality=...", or {modality: "family:checkpoint"}
    cpu_kernels: as in `mmtune.load`
    """
    spec = parse_spec(spec) if isinstance(spec, str) else spec
    if isinstance(spec, str):
        backbone = backbones.load(spec, cpu_kernels)
        return from_backbones(dict.fromkeys(backbone.towers, backbone))
    for m in spec:
        modalities.get(m)
    loaded = {s: backbones.load(s, cpu_kernels) for s in dict.fromkeys(spec.values())}  # each checkpoint once
    return from_backbones({m: loaded[s] for m, s in spec.items()})
