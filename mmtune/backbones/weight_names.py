"""Names of weights that do not depend on the version of transformers.

Versions of transformers build one architecture with different module names (`encoder.layer.0.attention.attention.query.weight` or
`layers.0.attention.q_proj.weight`), and some store two weights fused into one. Fingerprints are computed from the names and parts
of this module, and weights of an artifact are matched to those of a model by them. Fingerprints depend on RULES: rules may be added
for names that none of them changes now, but must not be changed.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![^.])(?:encoder\.layers?|model\.layer|layers?)\.(?=\d)", "layers."),
        (r"attention\.(?:attention|self)\.", "attention."),
        (r"attention\.query\.", "attention.q_proj."),
        (r"attention\.key\.", "attention.k_proj."),
        (r"attention\.value\.", "attention.v_proj."),
        (r"attention\.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
        (r"attention\.output\.dense\.", "attention.o_proj."),
        (r"(?<![^.])intermediate\.dense\.", "mlp.fc1."),
        (r"(?<![^.])output\.dense\.", "mlp.fc2."),
        (r"(?<![^.])mlp\.weights_out\.", "mlp.down_proj."),
    )
)
"""Pattern and replacement, applied in this order to every name."""
FUSED = re.compile(r"(?<![^.])mlp\.weights_in\.")
"""A weight that other versions store as two, stacked along its first dimension."""
PARTS = ("mlp.gate_proj.", "mlp.up_proj.")


def weight_keys(name: str) -> tuple[str, ...]:
    """Return the name of a weight that does not depend on the version; of a fused weight, the names of its parts."""
    for pattern, replacement in RULES:
        name = pattern.sub(replacement, name)
    return tuple(FUSED.sub(part, name) for part in PARTS) if FUSED.search(name) else (name,)


def named_by_key(weights: "Iterable[tuple[str, Tensor]]") -> "Iterator[tuple[str, Tensor]]":
    """Yield the weights with the names of `weight_keys`, and fused ones in their parts."""
    for name, tensor in weights:
        keys = weight_keys(name)
        yield from zip(keys, tensor.chunk(len(keys)) if len(keys) > 1 else (tensor,), strict=True)


def renamed(weights: "Mapping[str, Tensor]", names: Iterable[str]) -> "dict[str, Tensor]":
    """Return weights that another version may have named, with the names of a model's state dict.

    weights: name and tensor of each weight
    names: those of the state dict

    A weight that matches none of `names` keeps its own name.
    """
    import torch

    given = dict(named_by_key(weights.items()))
    found = {}
    for name in names:
        keys = weight_keys(name)
        if all(k in given for k in keys):
            parts = [given[k] for k in keys]
            found[name] = parts[0] if len(parts) == 1 else torch.cat(parts)
    used = {k for name in found for k in weight_keys(name)}
    return found | {n: t for n, t in weights.items() if not used.issuperset(weight_keys(n))}


def name_in(names: Iterable[str]) -> Mapping[tuple[str, ...], str]:
    """Return the names of a model's state dict by their `weight_keys`."""
    return {weight_keys(name): name for name in names}
