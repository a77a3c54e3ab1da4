"""LoRA (Hu et al., arXiv 2106.09685) and QLoRA (Dettmers et al., arXiv 2305.14314) with peft, for the towers of any library.

`inject` adds the adapters, `adapters` returns their matrices, and `merge` adds them to the weights and restores plain layers.
"""

import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from mmtune.errors import MissingExtra, RecipeError
from mmtune.model.artifact.low_rank import LowRankDelta, quiet_import
from mmtune.recipe.tune_block import AdapterTuning
from mmtune.training.tuning.lora_fused_attention import disable_fused_inference, encoder_layers, restore_fused_inference
from mmtune.training.tuning.lora_targets import LoraTargets, find_targets
from mmtune.training.tuning.nf4_linear import dequantised_weight, nf4_linear

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

ADAPTER = "default"
INSTALL = 'pip install "mmtune[lora]"'

ThirdPartyLayer = Any
"""A layer of peft or bitsandbytes. These libraries have no type annotations."""


class AdaptedLayer(NamedTuple):
    """An adapter in a model.

    name: name of the peft layer in the model
    layer: the peft layer
    adapter: its low-rank matrices
    """

    name: str
    layer: ThirdPartyLayer
    adapter: LowRankDelta


def inject(tower: list[nn.Module], tuning: AdapterTuning, key: str, seed: int) -> None:
    """Add adapters to the modules of one tower. With qlora, its linear layers become 4-bit.

    The tower's embeddings do not change, except that qlora rounds the weights. Raises RecipeError for settings that do not fit
    the tower, and MissingExtra if a library is not installed.

    key: the recipe key, for messages
    """
    targets = find_targets(tower, tuning.targets, key)
    if tuning.dropout and any(t.parameters for t in targets):
        raise RecipeError(
            f"{key}.dropout: the fused attention of this tower does not support dropout; set 0, or set `targets` without it"
        )
    try:
        with warnings.catch_warnings(), quiet_import():
            warnings.simplefilter("ignore")
            import peft  # noqa: F401
    except ImportError:
        raise MissingExtra(f"{key}: {tuning.how} needs peft: {INSTALL}") from None
    if tuning.how == "qlora" and not sum(quantise(t.module, t.layers, key) for t in targets):
        raise RecipeError(f"{key}: qlora: this tower has no linear layers that could be stored in 4 bits; use how: lora")
    for target in targets:
        _inject_module(target, tuning, key, seed)


def _inject_module(target: LoraTargets, tuning: AdapterTuning, key: str, seed: int) -> None:
    """Add adapters to one module. Raises RecipeError if peft adapts other weights than the targets."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = encoder_layers(target.module)
    alpha: Any = tuning.alpha or 2 * tuning.rank  # Any: peft annotates it as int, but accepts every number
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
        # open_clip takes the dtype of activations from this attribute or from the weight, whose dtype is now a byte type.
        for a in adapted:
            a.layer.int8_original_dtype = torch.float32
    for a in adapted:  # MobileNet reads these from its convolutions to pad as TensorFlow does
        base = a.layer.get_base_layer()
        if isinstance(base, nn.Conv2d):
            a.layer.stride, a.layer.kernel_size, a.layer.dilation = base.stride, base.kernel_size, base.dilation
    names = {a.adapter.name for a in adapted}
    wanted = {f"{n}.weight" for n in target.layers} | set(target.parameters)
    if names != wanted:  # peft matches name suffixes, and so may adapt more layers than intended
        raise RecipeError(f"{key}: peft adapted other weights than intended: {', '.join(sorted(names ^ wanted)[:3])}")
    disable_fused_inference(layers)


def quantise(root: nn.Module, layers: list[str], key: str) -> int:
    """Replace the linear layers among `layers` by 4-bit layers (NF4). Returns their number."""
    count = 0
    for name in layers:
        layer = root.get_submodule(name)
        if isinstance(layer, nn.Linear):
            root.set_submodule(name, nf4_linear(layer, key))
            count += 1
    return count


def _adapted_layers(model: nn.Module) -> Iterator[AdaptedLayer]:
    """Yield every adapter in the model."""
    for name, module in list(model.named_modules()):
        layer: ThirdPartyLayer = module
        if hasattr(layer, "lora_A") and ADAPTER in layer.lora_A and hasattr(layer, "get_base_layer"):
            weight = getattr(layer, "parameter_name", "weight")
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            yield AdaptedLayer(name, layer, LowRankDelta(f"{name}.{weight}", a, b, float(layer.scaling[ADAPTER])))


def adapters(model: nn.Module) -> list[LowRankDelta]:
    """Return the matrices of every adapter, copied to the CPU."""
    found = [x.adapter for x in _adapted_layers(model)]
    return [LowRankDelta(x.name, x.a.detach().cpu().clone(), x.b.detach().cpu().clone(), x.scaling) for x in found]


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return {name: parameter} of all adapter matrices, without copying."""
    return {n: p for n, p in model.named_parameters() if ".lora_" in n}


@torch.no_grad()
def merge(model: "Model") -> None:
    """Add every adapter to its weight and restore the plain layers, in place. All parameters become trainable again."""
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
    """Convert a 4-bit layer to a plain layer with the values that the 4-bit layer computes with."""
    has_bias = quantised.bias is not None
    layer = nn.Linear(quantised.in_features, quantised.out_features, has_bias, device=quantised.weight.device)
    layer.weight.copy_(dequantised_weight(quantised))
    if has_bias:
        layer.bias.copy_(quantised.bias)
    return layer
