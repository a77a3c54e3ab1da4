"""Model soups (Wortsman et al., arXiv 2203.05482): the mean of the weights of several runs that began at one base is mostly
better than any of them, and costs nothing when it serves."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mmtune.errors import DataError, ModelError, RecipeError
from mmtune.evaluation.evaluate_model import evaluate
from mmtune.evaluation.leakage import refuse_trained_rows, row_identity
from mmtune.model import artifact
from mmtune.model.artifact.trained_rows import trained_on, union

if TYPE_CHECKING:
    from mmtune.data.shards.dataset import Data
    from mmtune.model.dual_encoder import Model

HOW = ("greedy", "uniform")


def soup(
    models: Sequence[str | Path],
    data: "Data | str",
    out: str | Path,
    *,
    how: str = "greedy",
    metric: str = "map",
    batch_size: int = 64,
    quiet: bool = True,
) -> dict[str, Any]:
    """Write the mean of some of `models`, artifacts or MODELs of one base and layout, to the artifact `out`.

    greedy: from the best by `metric` (averaged over the directions between modalities) on `data`, which none of them was
    trained on, down; each joins if the mean does not get worse. uniform: all of them. Returns {"artifact", "fingerprint",
    "metric", "score", "best single", "steps": [...]}, a step an ingredient in the order they were tried. Raises RecipeError,
    DataError for rows that were trained on, and ModelError for ingredients that do not go together.
    """
    from mmtune.data.shards.dataset import open_data

    if how not in HOW:
        raise RecipeError(f"soup: {how!r}; there are: {', '.join(HOW)}")
    places = [str(m) for m in models]
    if len(places) < 2 or len(set(places)) < len(places):
        raise RecipeError(f"soup: {len(set(places))} models named; it takes two or more different ones")
    if Path(out).exists():
        raise DataError(f"{out}: is there already; choose another --out")
    rows = open_data(data) if isinstance(data, str) else data
    pot = artifact.load(places[0])
    states, known = [_state(pot)], _identity(pot, places[0])
    for place in places[1:]:
        other = artifact.load(place)
        _same(known, _identity(other, place), places[0], place)
        states.append(_state(other))
    names = [m for m in rows.modalities if m in pot.towers]
    for place in places:
        refuse_trained_rows({m: row_identity(rows, m) for m in names}, trained_on(place), place)

    def score(state: Mapping[str, Tensor]) -> float:
        _pour(pot, state)
        return evaluate(pot, rows, within=False, metrics=[metric], batch_size=batch_size).metric(metric)

    single = [score(s) for s in states]
    order = sorted(range(len(places)), key=lambda i: (-single[i], places[i]))
    chosen, steps = _stir(order, states, single, score, how)
    mean = _mean([states[i] for i in chosen])
    final = score(mean)
    info = _info(pot, [places[i] for i in chosen], how, metric)
    mark = artifact.save(pot, out, info=info, trained_on=union([trained_on(places[i]) for i in chosen]))
    return {
        "artifact": str(out),
        "fingerprint": mark,
        "metric": metric,
        "score": final,
        "best single": single[order[0]],
        "steps": [{"model": places[i], **step} for i, step in steps],
    }


def _stir(
    order: Sequence[int], states: Sequence[Mapping[str, Tensor]], single: Sequence[float], score: Any, how: str
) -> tuple[list[int], list[tuple[int, dict[str, Any]]]]:
    """(ingredients taken, what each of those tried did)."""
    chosen: list[int] = []
    steps: list[tuple[int, dict[str, Any]]] = []
    best = -np.inf
    for i in order:
        joined = score(_mean([states[j] for j in [*chosen, i]])) if chosen and how == "greedy" else single[i]
        taken = how == "uniform" or joined >= best
        steps.append((i, {"alone": single[i], "taken": taken} | ({"soup": joined} if how == "greedy" else {})))
        if taken:
            chosen.append(i)
            best = joined
    return chosen, steps


def _state(model: "Model") -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}


def _mean(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means in float64; counters and other integers are the first one's."""
    out = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            out[name] = torch.stack([s[name].double() for s in states]).mean(0).to(first.dtype)
        else:
            out[name] = first
    return out


@torch.no_grad()
def _pour(model: "Model", state: Mapping[str, Tensor]) -> None:
    model.load_state_dict(dict(state))
    model.train().eval()  # another fingerprint


def _identity(model: "Model", place: str) -> dict[str, Any]:
    """What ingredients must share: the base they began at (a base is its own), shape, files, prompts."""
    return {
        "base": model.info.get("base_fingerprint") or model.fingerprint,
        "layout": copy.deepcopy(model.layout().to_json()),
        "files": model.files(),
        "weights": {k: tuple(v.shape) for k, v in model.state_dict().items()},
    }


def _same(a: Mapping[str, Any], b: Mapping[str, Any], first: str, other: str) -> None:
    if a["layout"] != b["layout"] or a["weights"] != b["weights"]:
        keys = [k for k in a["layout"] if a["layout"][k] != b["layout"].get(k)] or ["weights"]
        raise ModelError(f"soup: {other} is not laid out as {first}: another {keys[0]}; mix runs of one recipe's shape")
    if a["files"] != b["files"]:
        raise ModelError(f"soup: {other} has other preprocessing or another tokenizer than {first}")
    if a["base"] != b["base"]:
        raise ModelError(
            f"soup: {other} began at another base than {first} ({b['base'][:16]} and {a['base'][:16]}): the mean of their "
            "weights means nothing; mix runs that began at one"
        )


def _info(model: "Model", chosen: Sequence[str], how: str, metric: str) -> dict[str, Any]:
    kept = ("base", "base_fingerprint", "pairs", "seen", "tune", "matryoshka")
    return {k: v for k, v in model.info.items() if k in kept} | {"soup": list(chosen), "soup_of": f"{how}, by {metric}"}
