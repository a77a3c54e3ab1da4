"""LoRA for attention that stores q, k and v in one fused parameter (`nn.MultiheadAttention`, used in open_clip's towers).

The fused projection is not a linear layer, so adapters that target linear layers omit it without a warning (peft #761, #1324).
Here peft adapts the parameter itself (`target_parameters`). peft also has a layer for whole attention modules. It is not used,
because it adds and subtracts the adapter at every step, so that rounding errors would change the base weights.

torch's fused inference kernel for `nn.TransformerEncoderLayer` reads the weights directly, and would ignore the adapters. It is
therefore disabled while a layer has adapters.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

FUSED_WEIGHT = "in_proj_weight"


def fused_projection_name(attention: str) -> str:
    """Name of the fused q, k, v weight in the attention module with name `attention`."""
    return f"{attention}.{FUSED_WEIGHT}"


def attention_name(parameter: str) -> str:
    """Name of the attention module of a fused weight: the inverse of `fused_projection_name`."""
    return parameter.removesuffix(f".{FUSED_WEIGHT}")


def encoder_layers(module: nn.Module) -> list[nn.TransformerEncoderLayer]:
    """Return the layers in `module` that have a fused inference kernel."""
    return [m for m in module.modules() if isinstance(m, nn.TransformerEncoderLayer)]


def disable_fused_inference(layers: Iterable[nn.TransformerEncoderLayer]) -> None:
    """Disable the fused kernel in the layers that have adapters, by changing attributes that torch checks before using it."""
    for layer in layers:
        if any(".lora_" in n for n, _ in layer.named_parameters()):
            layer.activation_relu_or_gelu = 0
            if not isinstance(layer.self_attn, nn.MultiheadAttention):
                layer.self_attn.batch_first = False


def restore_fused_inference(layers: Iterable[nn.TransformerEncoderLayer]) -> None:
    """Enable the fused kernel again, after adapters were merged."""
    for layer in layers:
        if layer.activation_relu_or_gelu == 0:
            layer.activation_relu_or_gelu = _activation_code(layer.activation)


def _activation_code(activation: nn.Module | Callable[[Tensor], Tensor]) -> int:
    """Return the code that nn.TransformerEncoderLayer stores for its activation: 1 for ReLU, 2 for GELU, 0 otherwise."""
    is_relu = activation is nn.functional.relu or isinstance(activation, nn.ReLU)
    is_gelu = activation is nn.functional.gelu or isinstance(activation, nn.GELU)
    return 1 if is_relu else 2 if is_gelu else 0
