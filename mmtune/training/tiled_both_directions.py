"""Plain InfoNCE of both directions of a pair of modalities, computed from the same tiles."""

import inspect
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtune.losses.contrastive import QueryCandidateBatch, query_weights
from mmtune.losses.info_nce import info_nce
from mmtune.losses.tiled import positive_pairs, tiled_info_nce
from mmtune.runtime.distributed import Processes
from mmtune.training.objective_spec import AUTO, LossTerm

if TYPE_CHECKING:
    from mmtune.training.objective import PairVectors


def tiled_info_nce_both_directions(
    term: LossTerm, forward: QueryCandidateBatch, backward: QueryCandidateBatch, pair: "PairVectors", processes: Processes
) -> Tensor | None:
    """Compute plain InfoNCE of both directions from the same tiles.

    Returns None if the term is another loss, or if options, masks or extra candidates rule out this method.
    """
    plain = term.function is info_nce or (term.loss == AUTO and forward.bias is None)
    options = {"positives": default_positives()} | term.options
    mode = options.pop("positives")
    if not plain or mode == "sum" or any(options.values()):
        return None
    if any(x.guide is not None or x.queue_start is not None or x.graded or x.mined is not None for x in (forward, backward)):
        return None
    a, b = backward.candidates, forward.candidates
    related = positive_pairs(pair.items.positives)
    if related is None:
        return None
    pairs = related if mode == "mean" else (forward.row_pairs.query, forward.row_pairs.candidate)
    weights = _pair_weights(forward, pairs[0], len(a)), _pair_weights(backward, pairs[1], len(b))
    ignored = None if mode == "mean" else related
    return tiled_info_nce(a, b, pairs, weights, (forward.scale, backward.scale), ignored, processes)


def _pair_weights(inputs: QueryCandidateBatch, query: Tensor, count: int) -> Tensor:
    """Weight of each positive pair in one direction: the query's weight, divided evenly among its pairs.

    The weights of one direction sum to 1/2, so that the two directions are averaged.
    """
    weight = query_weights(inputs)
    weight = torch.cat([weight, weight.new_zeros(count - len(weight))])
    n_pairs = torch.zeros(count, device=weight.device).index_add_(0, query, torch.ones_like(query, dtype=weight.dtype))
    return weight[query] / n_pairs[query] / weight.sum() / 2


def default_positives() -> str:
    """Return the default of InfoNCE's option `positives`."""
    return inspect.signature(info_nce).parameters["positives"].default
