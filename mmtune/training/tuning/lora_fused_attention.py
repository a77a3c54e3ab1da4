"""LoRA on attention that keeps q, k and v in one fused parameter (`nn.MultiheadAttention`, used by open_clip's towers).

Such a projection is no linear layer, so adapters that target linear layers miss it silently (peft #761, #1324). peft adapts
the parameter itself (`target_parameters`); its layer for whole attention modules would add and subtract the delta at every
step, and the base would drift by rounding.

torch's fused inference kernel for `nn.TransformerEncoderLayer` reads the bare weights and so would serve the base without its
adapters: it is switched off while a layer has adapters.
"""

from collections.abc import Callable, Iterable

from torch import Tensor, nn

FUSED_WEIGHT = "in_proj_weight"


def fused_projection_name(attention: str) -> str:
    """The name of the fused q, k, v weight of the attention module `attention`."""
    return f"{attention}.{FUSED_WEIGHT}"


def attention_name(parameter: str) -> str:
    """The inverse of `fused_projection_name`."""
    return parameter.removesuffix(f".{FUSED_WEIGHT}")


def encoder_layers(module: nn.Module) -> list[nn.TransformerEncoderLayer]:
    """The layers of `module` that have a fused inference kernel."""
    return [m for m in module.modules() if isinstance(m, nn.TransformerEncoderLayer)]


def disable_fused_inference(layers: Iterable[nn.TransformerEncoderLayer]) -> None:
    """Switch the fused kernel off in the layers that have adapters. torch decides by these attributes whether to use it."""
    for layer in layers:
        if any(".lora_" in n for n, _ in layer.named_parameters()):
            layer.activation_relu_or_gelu = 0
            if not isinstance(layer.self_attn, nn.MultiheadAttention):
                layer.self_attn.batch_first = False


def restore_fused_inference(layers: Iterable[nn.TransformerEncoderLayer]) -> None:
    """Switch the fused kernel on again, after adapters were merged."""
    for layer in layers:
        if layer.activation_relu_or_gelu == 0:
            layer.activation_relu_or_gelu = _activation_code(layer.activation)


def _activation_code(activation: nn.Module | Callable[[Tensor], Tensor]) -> int:
    """As nn.TransformerEncoderLayer itself sets it: 1 for ReLU, 2 for GELU, else 0."""
    is_relu = activation is nn.functional.relu or isinstance(activation, nn.ReLU)
    is_gelu = activation is nn.functional.gelu or isinstance(activation, nn.GELU)
    return 1 if is_relu else 2 if is_gelu else 0
