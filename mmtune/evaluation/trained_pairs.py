"""Find the pairs of modalities that a model was trained on, so that an evaluation can mark the other directions as untrained.

In an untrained direction, similarity is meaningful only if both modalities were trained with the same third one, and even then
only indirectly.
"""

import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mmtune.contracts import Pair
from mmtune.errors import DataWarning

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def trained_pairs(model: "Model") -> list[Pair]:
    """Return the pairs that the model's checkpoints and every later training recorded in its artifact were trained on.

    A checkpoint was trained on the pairs of modalities for which it has its own logit scale. Randomly initialised backbones
    were trained on none.
    """
    pairs: set[Pair] = set()
    for part, names in model.backbones:
        if not part.info.get("untrained"):
            joined = [d.partition("->") for s in part.logit_scales for d in s.directions]
            pairs |= {_sorted(a, b) for a, _, b in joined if a in names and b in names}
    for a, b in [*model.info.get("pairs", []), *model.info.get("seen", [])]:
        pairs.add(_sorted(a, b))
    return sorted(pairs)


def untrained_directions(model: "Model", directions: Iterable[str]) -> list[str]:
    """Return those `directions` whose two modalities were never trained as a pair; [] if no training is recorded."""
    if "pairs" not in model.info and "seen" not in model.info:
        return []
    known = set(trained_pairs(model))
    sides = {d: d.split("->") for d in directions}
    return [d for d, (a, b) in sides.items() if a != b and _sorted(a, b) not in known]


def towers_apart(model: "Model", modalities: Iterable[str]) -> str:
    """Say that a model compares `modalities` by towers of different checkpoints that were never trained together; else ""."""
    compared = set(modalities)
    apart = [part for part, names in model.backbones if compared & set(names)]
    if len(apart) < 2 or "pairs" in model.info or "seen" in model.info:
        return ""
    random = sorted(compared & set(model.heads))
    chance = f"finds {' and '.join(sorted(compared))} of each other by chance"
    if random:
        return f"its towers share no space: the head of {', '.join(random)} is random, so it {chance}"
    return f"its towers come from different checkpoints; unless these were trained together, it {chance}"


def warn_towers_apart(model: "Model", name: str, modalities: Iterable[str]) -> None:
    """Issue a DataWarning if `towers_apart` says something. name: of the model, e.g. "the base"."""
    if line := towers_apart(model, modalities):
        warnings.warn(
            f"{name}: {line}; train it first (recipes/few_shot.yaml fits heads within seconds), or name RUN/fitted_heads or RUN/artifact "
            "of a run",
            DataWarning,
            stacklevel=3,
        )


def _sorted(a: str, b: str) -> Pair:
    return (a, b) if a <= b else (b, a)
