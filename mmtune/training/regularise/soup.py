"""Model soups (Wortsman et al., arXiv 2203.05482): the mean of the weights of several runs of one base is often better than any
of them, and as fast as one."""

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
    """One ingredient: its own score, whether it was taken."""

    model: str
    alone: float
    taken: bool


class SoupStep(_SoupStep, total=False):
    """One ingredient in the order they were tried; soup: the score of the mean with it (greedy only)."""

    soup: float


@dataclass
class SoupResult(ResultFields):
    """A soup. artifact: its directory; fingerprint: its; metric, score: on the data that chose it; best_single: the highest
    score of one ingredient; steps: the ingredients in the order they were tried."""

    artifact: str
    fingerprint: str
    metric: str
    score: float
    best_single: float
    steps: list[SoupStep]


@dataclass(frozen=True)
class Ingredient:
    """What models of one soup must share: the base they started from, layout, files, shapes of the weights."""

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
    """Write the mean of some of `models`, artifacts or MODELs of one base and layout, to the artifact `out`.

    greedy: in the order of `metric` (averaged over the directions between modalities) on `data`, which none of them was
    trained on; each is added if the score of the mean does not fall. uniform: all of them. Raises RecipeError, DataError for
    rows that were trained on, and ModelError for models that cannot be averaged.
    """
    from mmtune.data.shards.dataset import open_data

    if how not in METHODS:
        raise RecipeError(f"soup: {how!r}; there are: {', '.join(METHODS)}")
    places = [str(m) for m in models]
    if len(places) < 2 or len(set(places)) < len(places):
        raise RecipeError(f"soup: {len(set(places))} models named; it takes two or more different ones")
    if Path(out).exists():
        raise DataError(f"{out}: is there already; choose another --out")
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
        return evaluate(model, rows, within=False, metrics=[metric], batch_size=batch_size).metric(metric)

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
    """(the ingredients taken, all of them in the order they were tried)."""
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
    """Means computed in float64; counters and other integers are those of the first."""
    out = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            out[name] = torch.stack([s[name].double() for s in states]).mean(0).to(first.dtype)
        else:
            out[name] = first
    return out


def _ingredient(model: "Model", place: str) -> Ingredient:
    base = model.info.get("base_fingerprint") or model.fingerprint  # a base is its own
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    return Ingredient(place, base, copy.deepcopy(model.layout().to_json()), model.files(), shapes)


def _check_compatible(first: Ingredient, other: Ingredient) -> None:
    """ModelError where the mean of both models' weights would mean nothing."""
    if first.layout != other.layout or first.shapes != other.shapes:
        keys = [k for k in first.layout if first.layout[k] != other.layout.get(k)] or ["weights"]
        raise ModelError(
            f"soup: {other.place} is not laid out as {first.place}: another {keys[0]}; mix runs of one recipe's shape"
        )
    if first.files != other.files:
        raise ModelError(f"soup: {other.place} has other preprocessing or another tokenizer than {first.place}")
    if first.base != other.base:
        raise ModelError(
            f"soup: {other.place} began at another base than {first.place} ({other.base[:16]} and {first.base[:16]}): the mean "
            "of their weights means nothing; mix runs that began at one"
        )


def _info(model: "Model", chosen: Sequence[str], how: str, metric: str) -> JsonObject:
    """Where the soup comes from, for its artifact."""
    kept = ("base", "base_fingerprint", "pairs", "seen", "tune", "matryoshka")
    return {k: v for k, v in model.info.items() if k in kept} | {"soup": list(chosen), "soup_of": f"{how}, by {metric}"}
