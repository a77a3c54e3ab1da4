"""WiSE-FT: interpolate weights linearly between base and tuned model (Wortsman et al., arXiv 2109.01903).

On the line between the two models' weights there is often a point that keeps nearly all of the tuned model's improvement
on the domain, and nearly all of the base model's score on the retention data.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from mmtune.evaluation.validation import DROP_HIGH, RETENTION_PREFIX
from mmtune.recipe.training_blocks import Interpolate
from mmtune.runtime.files import write_json
from mmtune.training.tuning.layers import copy_state_to_cpu, recompute_fingerprint

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model

Validate: TypeAlias = "Callable[[Model], Mapping[str, float]]"
"""Maps a model to its scores. "metric" is the mean on the domain's validation data, RETENTION_PREFIX + "metric" on retention."""


@dataclass(frozen=True)
class InterpolationPoint:
    """Scores at one interpolation coefficient.

    coefficient: 0 is the base, 1 the tuned model
    domain: score on the validation data
    retention: score on the retention data
    values: all other scores by name
    """

    coefficient: float
    domain: float
    retention: float
    values: Mapping[str, float]


@torch.no_grad()
def set_interpolated(model: "Model", start: Mapping[str, Tensor], tuned: Mapping[str, Tensor], coefficient: float) -> None:
    """Set the model's weights to start + coefficient * (tuned - start). Integers, such as counters, are the tuned model's."""
    for name, tensor in model.state_dict().items():
        a, b = start[name], tuned[name]
        exact = b if coefficient == 1 or not b.is_floating_point() else a if coefficient == 0 else torch.lerp(a, b, coefficient)
        tensor.copy_(exact)
    recompute_fingerprint(model)


def choose(
    points: Sequence[InterpolationPoint], options: Interpolate, at_most: float | None = None
) -> tuple[InterpolationPoint, str]:
    """Return (chosen point, the rule that chose it, as text). With equal scores, the larger coefficient is chosen.

    Only `options.coefficients` can be chosen. With `options.keep`, `points` must have the base model, i.e. coefficient 0, too.

    at_most: the forgetting budget: only points whose retention loss, by the upper end of its interval, is not larger are chosen,
        or, if there are none, the one that loses least
    """
    offered = [p for p in points if p.coefficient in options.coefficients]
    if at_most is not None:
        least = min(offered, key=lambda p: (p.values[DROP_HIGH], p.coefficient))
        offered = [p for p in offered if p.values[DROP_HIGH] <= at_most]
        if not offered:
            return least, "the smallest retention loss: none is within the budget"
        if options.keep is None:
            rule = f"the best domain score with a retention loss of at most {at_most:g} (upper end of the 95% interval)"
            return max(offered, key=lambda p: (p.domain, p.coefficient)), rule
    if options.keep is not None:
        base = next(p for p in points if p.coefficient == 0)
        kept = [p for p in offered if p.retention >= options.keep * base.retention]
        if kept:
            rule = f"the best domain score that keeps at least {options.keep:g} of the base model's retention score"
            return max(kept, key=lambda p: (p.domain, p.coefficient)), rule
    best = max(offered, key=lambda p: (p.domain + options.retention_weight * p.retention, p.coefficient))
    return best, f"the highest domain + {options.retention_weight:g} * retention"


def interpolate(
    model: "Model",
    start: Mapping[str, Tensor],
    validate: Validate,
    options: Interpolate,
    path: Path,
    metric: str,
    at_most: float | None = None,
) -> float:
    """Score every coefficient, set the chosen weights in `model`, and write all points to `path`. Returns the coefficient.

    With `options.keep` the base model is scored too, as the measure of the others, even if 0 is none of the coefficients.
    """
    tuned, points = copy_state_to_cpu(model), []
    measure = [] if options.keep is None else [0.0]
    for coefficient in sorted({*options.coefficients, *measure}):
        set_interpolated(model, start, tuned, coefficient)
        values = dict(validate(model))
        domain, retention = values.pop("metric"), values.pop(f"{RETENTION_PREFIX}metric")
        points.append(InterpolationPoint(coefficient, domain, retention, values))
    chosen, rule = choose(points, options, at_most)
    set_interpolated(model, start, tuned, chosen.coefficient)
    document = {
        "metric": metric,
        "rule": rule,
        "chosen": chosen.coefficient,
        "points": [asdict(p) for p in points],
        "fingerprint": model.fingerprint,
    }
    write_json(path, document)
    return chosen.coefficient
