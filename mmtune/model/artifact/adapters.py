"""Adapters on disk -> the tuned model: small files that mean something only on the base they were trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mmtune.errors import ModelError
from mmtune.model.artifact.low_rank import LowRankDelta, round_to_4bit
from mmtune.model.dual_encoder import Model
from mmtune.model.layout import Settings, read_settings
from mmtune.runtime.files import read_json

WEIGHTS, MANIFEST, FORMAT = "adapters.safetensors", "adapters.json", 1
INFO = "info.json"


@dataclass
class AdaptersManifest:
    """base: the MODEL that they were trained on, with its fingerprint; factors: alpha / rank by the adapted weight's name;
    rounded: weights whose base values were held in 4 bits; heads, own_scales: as in `Layout`; settings of the tuned model, None
    where the base's hold."""

    base: str | Mapping[str, str]
    base_fingerprint: str
    factors: dict[str, float]
    rounded: list[str]
    heads: list[str]
    own_scales: list[str]
    settings: Settings | None = None


def read_manifest(directory: Path) -> AdaptersManifest:
    """The manifest of an adapters directory. ModelError for one of a newer format, and for one that lacks a key."""
    path = directory / MANIFEST
    try:
        d = read_json(path)
        if d.get("format") != FORMAT:
            raise ModelError(f"{directory}: adapter format {d.get('format')!r}; this mmtune reads {FORMAT}: update mmtune")
        settings = read_settings(d["settings"]) if "settings" in d else None
        names = (d["rounded"], d["heads"], d["own_scales"])
        return AdaptersManifest(d["base"], d["base_fingerprint"], d["factors"], *names, settings)
    except KeyError as e:
        raise ModelError(f"{path}: the key {e} is missing; copy the directory again") from None
    except (AttributeError, TypeError, ValueError) as e:
        raise ModelError(f"{path}: not a manifest of adapters ({str(e).splitlines()[0]})") from None


@torch.no_grad()
def merge(directory: Path, manifest: AdaptersManifest, model: Model) -> Model:
    """`model`, the base, with the adapters of `directory` merged into its weights. Raises ModelError on another base, and for
    files that are damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if model.fingerprint != manifest.base_fingerprint:
        raise ModelError(
            f"{directory}: these adapters belong on {manifest.base} ({manifest.base_fingerprint}), not on a model with "
            f"fingerprint {model.fingerprint}"
        )
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {str(e).splitlines()[0]}") from None
    if missing := [n for n in manifest.factors if f"{n}::a" not in tensors or f"{n}::b" not in tensors]:
        raise ModelError(f"{directory / WEIGHTS}: the adapter of {missing[0]} is missing; copy the directory again")
    model.ensure_logit_scales([(a, b) for a, _, b in (key.partition("~") for key in manifest.own_scales)])
    model.ensure_heads(manifest.heads)
    state = model.state_dict()
    for name, value in tensors.items():
        if "::" not in name:
            state[name].copy_(value)
    for name, factor in manifest.factors.items():
        weight = state[name]
        if name in manifest.rounded:
            weight.copy_(round_to_4bit(weight, str(directory)))
        delta = LowRankDelta(name, tensors[f"{name}::a"], tensors[f"{name}::b"], factor).delta(weight)
        weight += delta.to(weight.device)
    if manifest.settings is not None:
        model.settings = manifest.settings
    model.train().eval()  # forgets the base's fingerprint
    model.info = {"source": str(directory), **(read_json(directory / INFO) if (directory / INFO).is_file() else {})}
    return model
