"""Which pairs of modalities a model ever learnt from: what a direction without such a pair scores is by way of an anchor."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mmtune.contracts import Pair

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


def seen_pairs(model: "Model") -> list[Pair]:
    """The pairs of the checkpoints that the model was made of, and of every training since that its artifact tells of.

    A checkpoint pairs the modalities that its own temperatures join; seeded towers that nobody trained pair nothing.
    """
    found: set[Pair] = set()
    for part, names in model.backbones:
        if not part.info.get("untrained"):
            joined = [d.partition("->") for s in part.logit_scales for d in s.directions]
            found |= {_sorted(a, b) for a, _, b in joined if a in names and b in names}
    for a, b in [*model.info.get("pairs", []), *model.info.get("seen", [])]:
        found.add(_sorted(a, b))
    return sorted(found)


def unseen(model: "Model", directions: Iterable[str]) -> list[str]:
    """Those of `directions` between two modalities that no pair joins; none where nothing is known of any training."""
    if "pairs" not in model.info and "seen" not in model.info:
        return []
    known = set(seen_pairs(model))
    pairs = {d: d.split("->") for d in directions}
    return [d for d, (a, b) in pairs.items() if a != b and _sorted(a, b) not in known]


def _sorted(a: str, b: str) -> Pair:
    return (a, b) if a <= b else (b, a)
