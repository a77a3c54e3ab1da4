"""Weights between base and tuned: WiSE-FT (Wortsman et al., arXiv 2109.01903). On the straight line from the base to the tuned
model there is mostly a point that has nearly all of the domain's gain and nearly all of the general skill.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmtune.recipe.training_blocks import Interpolate
from mmtune.runtime.files import write_json
from mmtune.training.tuning.layers import copy_state_to_cpu, recompute_fingerprint

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

Score = Callable[["Model"], dict[str, float]]
"""model -> values with the domain's under "metric" and the general slice's under "general metric"."""


@torch.no_grad()
def place_between(model: "Model", start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], coefficient: float) -> None:
    """model = start + coefficient * (tuned - start); counters and other integers are the tuned model's."""
    for name, tensor in model.state_dict().items():
        a, b = start[name], tuned[name]
        exact = b if coefficient == 1 or not b.is_floating_point() else a if coefficient == 0 else torch.lerp(a, b, coefficient)
        tensor.copy_(exact)
    recompute_fingerprint(model)


def pick(points: list[dict[str, Any]], options: Interpolate) -> tuple[dict[str, Any], str]:
    """(the chosen point, the rule in words). Ties go to the larger coefficient."""
    base = min(points, key=lambda p: p["coefficient"])
    if options.keep is not None:
        kept = [p for p in points if p["general"] >= options.keep * base["general"]]
        if kept:
            best = max(kept, key=lambda p: (p["domain"], p["coefficient"]))
            return (
                best,
                f"the best domain among those with at least {options.keep:g} of the general score at {base['coefficient']:g}",
            )
    best = max(points, key=lambda p: (p["domain"] + options.retention_weight * p["general"], p["coefficient"]))
    return best, f"the highest domain + {options.retention_weight:g} * general"


def interpolate(
    model: "Model", start: Mapping[str, Tensor], score: Score, options: Interpolate, path: Path, metric: str
) -> float:
    """Sweep the coefficients, leave the chosen weights in `model`, write all points to `path`; returns the coefficient."""
    tuned, points = copy_state_to_cpu(model), []
    for coefficient in sorted(set(options.coefficients)):
        place_between(model, start, tuned, coefficient)
        values = score(model)
        domain, general = values.pop("metric"), values.pop("general metric")
        points.append({"coefficient": coefficient, "domain": domain, "general": general, "values": values})
    best, rule = pick(points, options)
    place_between(model, start, tuned, best["coefficient"])
    document = {
        "metric": metric,
        "rule": rule,
        "chosen": best["coefficient"],
        "points": points,
        "fingerprint": model.fingerprint,
    }
    write_json(path, document)
    return float(best["coefficient"])
