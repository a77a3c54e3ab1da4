"""LoRA (Hu et al., arXiv 2106.09685) and QLoRA (Dettmers et al., arXiv 2305.14314) through peft, in any family's tower.

Low-rank adapters stand beside the linear layers, 1 x 1 convolutions and fused attention projections of a tower's blocks. An
attention that keeps q, k and v in one parameter is not a linear layer: peft adapts the parameter itself (`target_parameters`);
its layer for whole attention modules would add and subtract the delta at every step, and the base would drift by rounding.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmtune.errors import MissingExtra, RecipeError
from mmtune.model.artifact.low_rank import Low, bitsandbytes
from mmtune.recipe.recipe import Tuning
from mmtune.training.tuning.layers import blocks

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

ADAPTER = "default"
FUSED = "in_proj_weight"
INSTALL = 'pip install "mmtune[lora]"'


@dataclass
class Targets:
    """Names inside one module of a tower: layers to adapt, and fused parameters ("....in_proj_weight")."""

    module: nn.Module
    layers: list[str]
    parameters: list[str]

    def keep(self, ends: list[str]) -> "Targets":
        """Those whose name ends so; a fused parameter goes by its attention's name."""
        layers = [n for n in self.layers if any(_ends(n, e) for e in ends)]
        return Targets(self.module, layers, [n for n in self.parameters if any(_ends(_owner(n), e) for e in ends)])

    @property
    def names(self) -> list[str]:
        return [*self.layers, *(_owner(n) for n in self.parameters)]


def find_targets(tower: list[nn.Module], wanted: list[str] | None, key: str) -> list[Targets]:
    """What LoRA adapts in a tower: by default all it can in the blocks. `wanted`: ends of names, as ["q_proj", "v_proj"].

    Raises RecipeError when nothing is found, naming what there is.
    """
    found = [t for module in tower if (t := _all_targets(module)).names]
    if not found:
        raise RecipeError(f"{key}: this tower has no blocks with layers for adapters; tune it full, partial or head instead")
    if wanted is None:
        return found
    if not wanted:
        raise RecipeError(f"{key}.targets: an empty list adapts nothing; leave it out for all layers of the blocks")
    for end in wanted:
        if not any(t.keep([end]).names for t in found):
            known = sorted({n.rsplit(".", 1)[-1] for t in found for n in t.names})
            raise RecipeError(f"{key}.targets: {end!r} matches no layer of this tower's blocks; there are: {', '.join(known)}")
    return [t for t in (t.keep(wanted) for t in found) if t.names]


def _all_targets(module: nn.Module) -> Targets:
    names = {id(m): n for n, m in module.named_modules()}
    targets, inside = Targets(module, [], []), set[int]()
    for block in blocks([module]):
        for m in block.modules():
            if isinstance(m, nn.MultiheadAttention):
                inside |= {id(x) for x in m.modules()}
                targets.parameters.append(f"{names[id(m)]}.{FUSED}")
            elif id(m) not in inside and (isinstance(m, nn.Linear) or _pointwise(m)):
                targets.layers.append(names[id(m)])
    return targets


def _owner(parameter: str) -> str:
    return parameter.removesuffix(f".{FUSED}")


def _pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def inject(tower: list[nn.Module], tuning: Tuning, key: str, seed: int) -> None:
    """Put adapters into the modules of one tower; with qlora their linear layers become 4-bit. Vectors stay what they were
    (qlora: up to the rounding). Raises RecipeError and MissingExtra."""
    found = find_targets(tower, tuning.targets, key)
    if tuning.dropout and any(t.parameters for t in found):
        raise RecipeError(f"{key}.dropout: this tower's fused attention takes none; set 0, or `targets` without the attention")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingExtra(f"{key}: {tuning.how} needs peft: {INSTALL}") from None
    if tuning.how == "qlora" and not sum(quantise(t.module, t.layers, key) for t in found):
        raise RecipeError(f"{key}: qlora: this tower has no linear layers to hold in 4 bits; use how: lora")
    for t in found:
        encoders = [m for m in t.module.modules() if isinstance(m, nn.TransformerEncoderLayer)]
        alpha: Any = tuning.alpha or 2 * tuning.rank  # peft says int, and takes any number
        config = LoraConfig(
            r=tuning.rank,
            lora_alpha=alpha,
            lora_dropout=tuning.dropout,
            target_modules="|".join(map(re.escape, t.layers)) or None,
            target_parameters=t.parameters or None,
        )
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            inject_adapter_in_model(config, t.module, adapter_name=ADAPTER)
        done = {low.name for _, _, low in _adapted(t.module)}
        for _, layer, _ in _adapted(t.module):
            if (
                tuning.how == "qlora"
            ):  # open_clip takes its activations' dtype from here, or from the weight, which is bytes now
                layer.int8_original_dtype = torch.float32
        wanted = {f"{n}.weight" for n in t.layers} | set(t.parameters)
        if done != wanted:  # peft matches the ends of names
            raise RecipeError(f"{key}: peft adapted other weights than those wanted: {', '.join(sorted(done ^ wanted)[:3])}")
        for encoder in encoders:  # torch's fused inference kernel reads the bare weights: it would serve the base in silence
            if any(".lora_" in n for n, _ in encoder.named_parameters()):
                encoder.activation_relu_or_gelu = 0
                if not isinstance(encoder.self_attn, nn.MultiheadAttention):
                    encoder.self_attn.batch_first = False


def quantise(root: nn.Module, layers: list[str], key: str) -> int:
    """Replace the linear layers among `layers` by 4-bit ones (NF4); returns how many."""
    bnb, count = bitsandbytes(key), 0
    for name in layers:
        layer = root.get_submodule(name)
        if isinstance(layer, nn.Linear):
            small = bnb.nn.Linear4bit(
                layer.in_features,
                layer.out_features,
                layer.bias is not None,
                compute_dtype=torch.float32,
                compress_statistics=False,
                quant_type="nf4",
            )
            small.load_state_dict(layer.state_dict())
            small = small.to(layer.weight.device)
            small.support_avx512bf16_for_cpu = (
                False  # it would repack the weights at the first validation, and round them again
            )
            _replace(root, name, small)
            count += 1
    return count


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent), last, module)


# --- reading and removing ----------------------------------------------------------------------------------------------


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any, Low]]:
    """(name, peft's layer, its low-rank pair) of every adapter in the model."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "lora_A") and ADAPTER in module.lora_A and hasattr(module, "get_base_layer"):
            weight = getattr(module, "parameter_name", "weight")
            a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            yield name, module, Low(f"{name}.{weight}", a, b, float(module.scaling[ADAPTER]))


def adapters(model: nn.Module) -> list[Low]:
    """Every adapter's matrices, copied to the CPU."""
    return [Low(x.name, x.a.detach().cpu().clone(), x.b.detach().cpu().clone(), x.factor) for _, _, x in _adapted(model)]


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The matrices themselves, by name."""
    return {n: p for n, p in model.named_parameters() if ".lora_" in n}


@torch.no_grad()
def merge(model: "Model") -> None:
    """Add every adapter to its weight and put the plain layers back: the model is as if it had been tuned in full."""
    for name, module, low in _adapted(model):
        base = module.get_base_layer()
        if hasattr(base, "quant_state"):
            base = _unpacked(base)
        weight = getattr(base, low.name.rsplit(".", 1)[-1])
        weight += low.delta(weight)
        _replace(model, name, base)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and module.activation_relu_or_gelu == 0:
            module.activation_relu_or_gelu = _fused_kind(module.activation)
        for mark in ("peft_config", "_hf_peft_config_loaded"):
            if mark in vars(module):
                delattr(module, mark)
    for p in model.parameters():
        p.requires_grad_(True)


def _fused_kind(activation: Any) -> int:
    """As nn.TransformerEncoderLayer itself: 1 for ReLU, 2 for GELU, else 0."""
    relu = activation is nn.functional.relu or isinstance(activation, nn.ReLU)
    gelu = activation is nn.functional.gelu or isinstance(activation, nn.GELU)
    return 1 if relu else 2 if gelu else 0


def _unpacked(small: Any) -> nn.Linear:
    """A 4-bit layer as a plain one with the values it works with."""
    import bitsandbytes.functional as F

    layer = nn.Linear(small.in_features, small.out_features, small.bias is not None, device=small.weight.device)
    layer.weight.copy_(F.dequantize_4bit(small.weight.data, small.weight.quant_state).view_as(layer.weight))
    if small.bias is not None:
        layer.bias.copy_(small.bias)
    return layer
