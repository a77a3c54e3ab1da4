"""LoRA (Hu et al., arXiv 2106.09685) and QLoRA (Dettmers et al., arXiv 2305.14314) through peft, in any family's tower.

`inject` adds the adapters, `adapters` reads them, `merge` adds them to the weights and restores the plain layers.
"""

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mmtune.errors import MissingExtra, RecipeError
from mmtune.model.artifact.low_rank import LowRankDelta
from mmtune.recipe.tune_block import AdapterTuning
from mmtune.training.tuning.lora_fused_attention import disable_fused_inference, encoder_layers, restore_fused_inference
from mmtune.training.tuning.lora_targets import LoraTargets, find_targets
from mmtune.training.tuning.nf4_linear import dequantised_weight, nf4_linear

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

ADAPTER = "default"
INSTALL = 'pip install "mmtune[lora]"'

ThirdPartyLayer = Any
"""A layer of peft or bitsandbytes, which have no types."""


class AdaptedLayer(NamedTuple):
    """An adapter in a model: the name of peft's layer, the layer, and its low-rank matrices."""

    name: str
    layer: ThirdPartyLayer
    adapter: LowRankDelta


def inject(tower: list[nn.Module], tuning: AdapterTuning, key: str, seed: int) -> None:
    """Add adapters to the modules of one tower; with qlora their linear layers become 4-bit.

    The tower's vectors do not change (qlora: up to the rounding). key: the recipe key, for messages. Raises RecipeError and
    MissingExtra.
    """
    targets = find_targets(tower, tuning.targets, key)
    if tuning.dropout and any(t.parameters for t in targets):
        raise RecipeError(f"{key}.dropout: this tower's fused attention takes none; set 0, or `targets` without the attention")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import peft  # noqa: F401
    except ImportError:
        raise MissingExtra(f"{key}: {tuning.how} needs peft: {INSTALL}") from None
    if tuning.how == "qlora" and not sum(quantise(t.module, t.layers, key) for t in targets):
        raise RecipeError(f"{key}: qlora: this tower has no linear layers to hold in 4 bits; use how: lora")
    for target in targets:
        _inject_module(target, tuning, key, seed)


def _inject_module(target: LoraTargets, tuning: AdapterTuning, key: str, seed: int) -> None:
    """Add adapters to one module. RecipeError when peft adapts other weights than the wanted ones."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = encoder_layers(target.module)
    alpha: Any = tuning.alpha or 2 * tuning.rank  # annotated as int by peft, which takes any number
    config = LoraConfig(
        r=tuning.rank,
        lora_alpha=alpha,
        lora_dropout=tuning.dropout,
        target_modules="|".join(map(re.escape, target.layers)) or None,
        target_parameters=target.parameters or None,
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        inject_adapter_in_model(config, target.module, adapter_name=ADAPTER)
    adapted = list(_adapted_layers(target.module))
    if tuning.how == "qlora":
        for a in adapted:  # open_clip reads its activations' dtype from here, or from the weight, which is bytes now
            a.layer.int8_original_dtype = torch.float32
    names = {a.adapter.name for a in adapted}
    wanted = {f"{n}.weight" for n in target.layers} | set(target.parameters)
    if names != wanted:  # peft matches suffixes of names
        raise RecipeError(f"{key}: peft adapted other weights than those wanted: {', '.join(sorted(names ^ wanted)[:3])}")
    disable_fused_inference(layers)


def quantise(root: nn.Module, layers: list[str], key: str) -> int:
    """Replace the linear layers among `layers` by 4-bit ones (NF4); returns how many."""
    count = 0
    for name in layers:
        layer = root.get_submodule(name)
        if isinstance(layer, nn.Linear):
            root.set_submodule(name, nf4_linear(layer, key))
            count += 1
    return count


def _adapted_layers(model: nn.Module) -> Iterator[AdaptedLayer]:
    """Every adapter in the model."""
    for name, module in list(model.named_modules()):
        layer: ThirdPartyLayer = module
        if hasattr(layer, "lora_A") and ADAPTER in layer.lora_A and hasattr(layer, "get_base_layer"):
            weight = getattr(layer, "parameter_name", "weight")
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            yield AdaptedLayer(name, layer, LowRankDelta(f"{name}.{weight}", a, b, float(layer.scaling[ADAPTER])))


def adapters(model: nn.Module) -> list[LowRankDelta]:
    """Every adapter's matrices, copied to the CPU."""
    found = [x.adapter for x in _adapted_layers(model)]
    return [LowRankDelta(x.name, x.a.detach().cpu().clone(), x.b.detach().cpu().clone(), x.factor) for x in found]


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices themselves, by name."""
    return {n: p for n, p in model.named_parameters() if ".lora_" in n}


@torch.no_grad()
def merge(model: "Model") -> None:
    """Add every adapter to its weight and restore the plain layers: the model is as if it had been tuned in full."""
    for name, layer, adapter in _adapted_layers(model):
        base = layer.get_base_layer()
        if hasattr(base, "quant_state"):
            base = _dequantised(base)
        weight = getattr(base, adapter.name.rsplit(".", 1)[-1])
        weight += adapter.delta(weight)
        model.set_submodule(name, base)
    restore_fused_inference(encoder_layers(model))
    for module in model.modules():
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            if attribute in vars(module):
                delattr(module, attribute)
    for p in model.parameters():
        p.requires_grad_(True)


def _dequantised(quantised: ThirdPartyLayer) -> nn.Linear:
    """A 4-bit layer as a plain one with the values it computes with."""
    has_bias = quantised.bias is not None
    layer = nn.Linear(quantised.in_features, quantised.out_features, has_bias, device=quantised.weight.device)
    layer.weight.copy_(dequantised_weight(quantised))
    if has_bias:
        layer.bias.copy_(quantised.bias)
    return layer
