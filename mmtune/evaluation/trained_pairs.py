"""Which pairs of modalities a model was trained on. In a direction between two others, similarity comes from a third modality
that both were paired with, or from nothing at all: an evaluation says so."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mmtune.contracts import Pair

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def trained_pairs(model: "Model") -> list[Pair]:
    """The pairs of the checkpoints that the model was made of, and of every later training that its artifact records.

    A checkpoint was trained on the modalities that its own temperatures join; randomly initialised towers on nothing.
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
    """Those of `directions` whose two modalities are no trained pair; none where nothing is known of any training."""
    if "pairs" not in model.info and "seen" not in model.info:
        return []
    known = set(trained_pairs(model))
    sides = {d: d.split("->") for d in directions}
    return [d for d, (a, b) in sides.items() if a != b and _sorted(a, b) not in known]


def _sorted(a: str, b: str) -> Pair:
    return (a, b) if a <= b else (b, a)
