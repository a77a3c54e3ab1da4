"""Two views of one item as a positive pair: by dropout (SimCSE, arXiv 2104.08821) or by augmentation (SimCLR, arXiv 2002.05709).

With dropout, a first view is compared with the second views of all items of the batch, as in SimCSE. With augmentation, its candidates
are the second views and the other first views, so that InfoNCE over both directions is SimCLR's NT-Xent. Items that share a group
are no negatives; the option `positives` of the loss says what they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from mmtune.contracts import Batch, second_view
from mmtune.errors import RecipeError
from mmtune.losses.contrastive import QueryCandidateBatch, RowPairs
from mmtune.losses.positives_mask import PositivesMask
from mmtune.training.unique_items import label_kinds, unique_items

SCALE = 20.0
"""Logit scale without the option `scale`: the temperature 0.05 of SimCSE."""


def view_batches(
    z: Mapping[str, Tensor],
    batch: Batch,
    modality: str,
    how: str,
    directions: str,
    scale: float | None,
    bias: Tensor | None,
    training: bool,
) -> list[QueryCandidateBatch]:
    """Return the input of a contrastive loss for each direction (first view to second, second to first) over the items of query rows.

    how: "dropout" or "augmentation"
    training: whether dropout is on. Two views by dropout that are equal then raise RecipeError: the tower has no dropout
    """
    key = second_view(modality)
    rows = batch.is_query & (batch.item_of_row[modality] >= 0)
    items = unique_items(batch, modality, rows, rows)
    first, second = (z[k][batch.item_of_row[k][items.first_row]] for k in (modality, key))
    if training and how == "dropout" and torch.equal(first, second):
        raise RecipeError(
            f"objective.views: the two views of {modality} are equal, because its tower has no dropout in training; use views: "
            f"{{{modality}: augmentation}} with augment.{modality}, or an adapter with dropout (tune.{modality}: {{how: lora, dropout: 0.1}})"
        )
    labels = items.labels(batch, label_kinds(batch, modality))
    n, pair = len(items), torch.arange(len(items), device=first.device)
    logit_scale = torch.tensor(scale or SCALE, device=first.device)
    within = how == "augmentation"
    made = []
    for query, candidate in {"both": [(first, second), (second, first)], "forward": [(first, second)]}.get(
        directions, [(second, first)]
    ):
        candidate_labels = {k: (torch.cat([i, i + n]), torch.cat([v, v])) for k, (i, v) in labels.items()} if within else labels
        positives = PositivesMask(labels, candidate_labels, (n, n * (1 + within)))
        candidates = torch.cat([query, candidate]) if within else candidate
        row_pairs = RowPairs(pair, pair + n if within else pair, torch.ones(n, device=first.device))
        made.append(
            QueryCandidateBatch(
                query, candidates, positives, row_pairs, logit_scale, bias, same_modality=within, weigh_items=True
            )
        )
    return made
