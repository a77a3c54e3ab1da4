"""Model soups (Wortsman et al., arXiv 2203.05482): average the weights of several runs that started from the same base.

The average is often better than each single model, and costs no more at inference.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor

from mmtune.contracts import JsonObject
from mmtune.errors import DataError, ModelError, RecipeError
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.evaluation.leakage import refuse_trained_rows, row_identity
from mmtune.model import artifact
from mmtune.model.artifact.trained_rows import trained_on, union
from mmtune.runtime.results import ResultFields
from mmtune.training.tuning.layers import copy_state_to_cpu, recompute_fingerprint

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

METHODS = ("greedy", "uniform")
StateDict: TypeAlias = Mapping[str, Tensor]


class _SoupStep(TypedDict):
    """One model of the soup, with the fields that are always present.

    model: where the model was loaded from
    alone: score of the model alone
    taken: whether it is part of the soup
    """

    model: str
    alone: float
    taken: bool


class SoupStep(_SoupStep, total=False):
    """One model, in the order in which they were tried.

    soup: score of the soup including this model (greedy only)
    """

    soup: float


@dataclass
class SoupResult(ResultFields):
    """Result of making a soup.

    artifact: directory of the averaged model
    fingerprint: fingerprint of the averaged model
    metric: name of the metric that was used to choose
    score: the soup's score, on the same data that was used to choose
    best_single: highest score of a single model
    steps: the models in the order in which they were tried
    """

    artifact: str
    fingerprint: str
    metric: str
    score: float
    best_single: float
    steps: list[SoupStep]


@dataclass(frozen=True)
class Ingredient:
    """A model of the soup, and the properties that all models of a soup must share.

    place: where the model was loaded from
    base: fingerprint of the base model from which it was trained
    layout: backbones, heads and settings
    files: preprocessing and tokenizer files
    shapes: {name: shape of the weight}
    """

    place: str
    base: str
    layout: JsonObject
    files: Mapping[str, bytes]
    shapes: Mapping[str, tuple[int, ...]]


def soup(
    models: Sequence[str | Path],
    data: "Data | str",
    out: str | Path,
    *,
    how: Literal["greedy", "uniform"] | str = "greedy",
    metric: str = "map",
    batch_size: int = 64,
    quiet: bool = True,
) -> SoupResult:
    """Average the weights of some of `models`, and save the result as the artifact `out`.

    Raises RecipeError for invalid arguments, DataError if a model was trained on rows of `data` or if `out` exists, and
    ModelError for models whose weights cannot be averaged.

    models: artifacts or other MODEL references, with the same base and layout
    data: rows on which the models are scored; no model may have been trained on them
    how: which models are averaged
        greedy: tries the models from best to worst; each is included if the score of the average does not become lower
        uniform: includes all models
    metric: metric for the scores, averaged over the directions between modalities
    """
    from mmtune.data.shards.dataset import open_data

    if how not in METHODS:
        raise RecipeError(f"soup: unknown method {how!r}; choose one of: {', '.join(METHODS)}")
    places = [str(m) for m in models]
    if len(places) < 2 or len(set(places)) < len(places):
        raise RecipeError(f"soup: needs two or more different models, but {len(set(places))} are given")
    if Path(out).exists():
        raise DataError(f"{out}: already exists; choose another --out")
    rows = open_data(data) if isinstance(data, str) else data
    model = artifact.load(places[0])
    states, first = [copy_state_to_cpu(model)], _ingredient(model, places[0])
    for place in places[1:]:
        other = artifact.load(place)
        _check_compatible(first, _ingredient(other, place))
        states.append(copy_state_to_cpu(other))
    names = [m for m in rows.modalities if m in model.towers]
    for place in places:
        refuse_trained_rows({m: row_identity(rows, m) for m in names}, trained_on(place), place)

    def score(state: StateDict) -> float:
        model.load_state_dict(dict(state))
        recompute_fingerprint(model)
        return evaluate(model, rows, within=False, metrics=[metric], batch_size=batch_size, quiet=quiet).metric(metric)

    scores = [score(s) for s in states]
    order = sorted(range(len(places)), key=lambda i: (-scores[i], places[i]))
    chosen, steps = _choose(order, states, scores, score, how, places)
    final = score(_mean([states[i] for i in chosen]))
    info = _info(model, [places[i] for i in chosen], how, metric)
    seen = union([trained_on(places[i]) for i in chosen])
    fingerprint = artifact.save(model, out, info=info, trained_on=seen)
    return SoupResult(str(out), fingerprint, metric, final, scores[order[0]], steps)


def _choose(
    order: Sequence[int],
    states: Sequence[StateDict],
    scores: Sequence[float],
    score: Callable[[StateDict], float],
    how: str,
    places: Sequence[str],
) -> tuple[list[int], list[SoupStep]]:
    """Return (indices of the models to average, all models in the order in which they were tried)."""
    chosen: list[int] = []
    steps: list[SoupStep] = []
    best = -np.inf
    for i in order:
        with_it = score(_mean([states[j] for j in [*chosen, i]])) if chosen and how == "greedy" else scores[i]
        taken = how == "uniform" or with_it >= best
        step: SoupStep = {"model": places[i], "alone": scores[i], "taken": taken}
        steps.append({**step, "soup": with_it} if how == "greedy" else step)
        if taken:
            chosen.append(i)
            best = with_it
    return chosen, steps


def _mean(states: Sequence[StateDict]) -> dict[str, Tensor]:
    """Average floating-point tensors in float64. Integers, such as counters, are taken from the first model."""
    out = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            out[name] = torch.stack([s[name].double() for s in states]).mean(0).to(first.dtype)
        else:
            out[name] = first
    return out


def _ingredient(model: "Model", place: str) -> Ingredient:
    base = model.info.get("base_fingerprint") or model.fingerprint  # a model without a recorded base is itself a base
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    return Ingredient(place, base, copy.deepcopy(model.layout().to_json()), model.files(), shapes)


def _check_compatible(first: Ingredient, other: Ingredient) -> None:
    """Raise ModelError if averaging the weights of the two models would be meaningless."""
    if first.layout != other.layout or first.shapes != other.shapes:
        keys = [k for k in first.layout if first.layout[k] != other.layout.get(k)] or ["weights"]
        raise ModelError(
            f"soup: {other.place} and {first.place} differ in {keys[0]}; use models that were trained with the same structure"
        )
    if first.files != other.files:
        raise ModelError(f"soup: {other.place} and {first.place} differ in their preprocessing or tokenizer files")
    if first.base != other.base:
        raise ModelError(
            f"soup: {other.place} was trained from another base than {first.place} ({other.base[:16]} and {first.base[:16]}); "
            "averaging is meaningful only for models trained from the same base"
        )


def _info(model: "Model", chosen: Sequence[str], how: str, metric: str) -> JsonObject:
    """Provenance of the soup, for its artifact."""
    kept = ("base", "base_fingerprint", "pairs", "seen", "tune", "matryoshka")
    return {k: v for k, v in model.info.items() if k in kept} | {"soup": list(chosen), "soup_of": f"{how}, by {metric}"}
