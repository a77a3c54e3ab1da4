"""Learning rates and weight decays that a recipe sets for single towers (`tune.MODALITY.lr`, `tune.MODALITY.weight_decay`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from mmtune.errors import RecipeError
from mmtune.recipe.tune_block import AnyTuning, LearningTuning

if TYPE_CHECKING:
    from mmtune.model.dual_encoder import Model


@dataclass
class TowerRates:
    """Values of the towers that have their own.

    lr: {id of a parameter: peak learning rate}
    weight_decay: {id of a parameter: weight decay, if it is a weight that decays}
    """

    lr: dict[int, float] = field(default_factory=dict)
    weight_decay: dict[int, float] = field(default_factory=dict)


def tower_rates(model: "Model", towers: Mapping[str, AnyTuning]) -> TowerRates:
    """Collect the values of all towers.

    Raises RecipeError if two towers share parameters, and their values differ.
    """
    rates = TowerRates()
    for option, values in (("lr", rates.lr), ("weight_decay", rates.weight_decay)):
        owner: dict[int, str] = {}
        for m, t in towers.items():
            value = getattr(t, option) if isinstance(t, LearningTuning) else None
            for p in _parameters(model, m):
                other = owner.setdefault(id(p), m)
                if other != m and values.get(id(p)) != value:
                    raise RecipeError(f"tune.{m}.{option}: differs from tune.{other}.{option}, but the towers share parameters")
                if value is not None:
                    values[id(p)] = value
    return rates


def _parameters(model: "Model", m: str) -> list[nn.Parameter]:
    return [p for module in model.modules_of(m) for p in module.parameters()]
