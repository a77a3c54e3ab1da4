"""Load LoRA adapters and merge them into their base model. They are valid only for the base model that they were trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmtune.backbones.weight_names import name_in, weight_keys
from mmtune.errors import ModelError, first_line
from mmtune.model.artifact.low_rank import LowRankDelta, round_to_4bit
from mmtune.model.dual_encoder import Model
from mmtune.model.fingerprint import format_of
from mmtune.model.heads import HeadKind
from mmtune.model.layout import Settings, read_settings
from mmtune.runtime.files import read_json
from mmtune.runtime.format_number import check_format

WEIGHTS, MANIFEST, FORMAT = "adapters.safetensors", "adapters.json", 1
INFO = "info.json"
# In the weights file, "NAME::a" and "NAME::b" are the two low-rank matrices of the weight NAME; an entry without "::" replaces
# the weight of that name as a whole.


@dataclass
class AdaptersManifest:
    """The manifest of an adapters directory (adapters.json).

    base: the MODEL that the adapters were trained on
    base_fingerprint: its fingerprint
    scaling: {name of an adapted weight: alpha / rank}, as in PEFT
    quantized: names of the weights that were quantized to 4 bits in training (QLoRA)
    heads: modalities with a linear head, as in `Layout`
    added_logit_scales: pairs "a~b" with an added logit scale, as in `Layout`
    settings: the settings of the tuned model; None means those of the base
    head_kinds: structure of the heads that are not linear layers without bias
    """

    base: str | Mapping[str, str]
    base_fingerprint: str
    scaling: dict[str, float]
    quantized: list[str]
    heads: list[str]
    added_logit_scales: list[str]
    settings: Settings | None = None
    head_kinds: dict[str, HeadKind] = field(default_factory=dict)


def read_manifest(directory: Path) -> AdaptersManifest:
    """Read the manifest of an adapters directory. Raises ModelError if its format is not supported or a key is missing."""
    path = directory / MANIFEST
    try:
        d = read_json(path)
        check_format(d.get("format"), FORMAT, directory / MANIFEST, ModelError)
        settings = read_settings(d["settings"]) if "settings" in d else None
        names = (d["rounded"], d["heads"], d["own_scales"])
        kinds = {str(m): HeadKind.from_json(k) for m, k in d.get("head_kinds", {}).items()}
        return AdaptersManifest(d["base"], d["base_fingerprint"], d["factors"], *names, settings, kinds)
    except KeyError as e:
        raise ModelError(
            f"{path}: the key {e} is missing: the file is incomplete or damaged; restore the directory from its source"
        ) from None
    except (AttributeError, TypeError, ValueError) as e:
        raise ModelError(f"{path}: not a valid adapter manifest ({first_line(e)})") from None


@torch.no_grad()
def merge(directory: Path, manifest: AdaptersManifest, model: Model) -> Model:
    """Merge adapters into the weights of their base model, in place.

    directory: the adapters directory
    manifest: its manifest
    model: the base model; it becomes the tuned model, and is returned

    Raises ModelError if `model` is not the base that the adapters were trained on, or if a file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    actual = model.fingerprint_in_format(format_of(manifest.base_fingerprint))
    if actual != manifest.base_fingerprint:
        raise ModelError(
            f"{directory}: these adapters were trained on {manifest.base} (fingerprint {manifest.base_fingerprint}) and cannot "
            f"be merged into a model with fingerprint {actual}"
        )
    try:
        tensors = load_file(directory / WEIGHTS)
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{directory / WEIGHTS}: {first_line(e)}") from None
    if missing := [n for n in manifest.scaling if f"{n}::a" not in tensors or f"{n}::b" not in tensors]:
        raise ModelError(
            f"{directory / WEIGHTS}: the adapter of {missing[0]} is missing: the file is incomplete; restore the directory "
            "from its source"
        )
    model.ensure_logit_scales([(a, b) for a, _, b in (key.partition("~") for key in manifest.added_logit_scales)])
    model.ensure_heads(manifest.heads)
    for m, kind in manifest.head_kinds.items():
        model.replace_head(m, kind)
    state = model.state_dict()
    present = name_in(state)  # another version of transformers may have named the weights
    used = [n for n in tensors if "::" not in n] + list(manifest.scaling)
    if unknown := [n for n in used if weight_keys(n) not in present]:
        raise ModelError(
            f"{directory / WEIGHTS}: the base model has no weight {unknown[0]}; use the transformers it was saved with"
        )
    for name, value in tensors.items():
        if "::" not in name:
            state[present[weight_keys(name)]].copy_(value)
    for name, scaling in manifest.scaling.items():
        weight = state[present[weight_keys(name)]]
        if name in manifest.quantized:  # the adapter was trained on the quantized weight
            weight.copy_(round_to_4bit(weight, str(directory)))
        delta = LowRankDelta(name, tensors[f"{name}::a"], tensors[f"{name}::b"], scaling).delta(weight)
        weight += delta.to(weight.device)
    if manifest.settings is not None:
        model.settings = manifest.settings
    model.eval().invalidate_fingerprint()
    model.info = {"source": str(directory), **(read_json(directory / INFO) if (directory / INFO).is_file() else {})}
    return model
