"""Initialise heads from the training pairs, so that a composed model retrieves before its first step.

Ridge regression maps the features of one tower to the embeddings of the other modality. Canonical correlation analysis (Hotelling
1936) maps the features of both towers to directions in which they correlate; each direction is scaled by its correlation, as
in Gong et al., arXiv 1212.4522.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmtune.contracts import Pair
from mmtune.data.shards.streamed_sets import StreamedSets
from mmtune.embedding.feature_cache import tower_features
from mmtune.embedding.streamed_features import streamed_features
from mmtune.errors import RecipeError
from mmtune.model.heads import HeadKind, linear_layer, signed_power
from mmtune.model.prompts import with_prompt
from mmtune.recipe.heads_block import Head

if TYPE_CHECKING:
    from mmtune.data.shards.weighted_concat import WeightedConcat
    from mmtune.model.dual_encoder import Model


def initialise_heads(
    model: "Model",
    heads: Mapping[str, Head],
    data: "WeightedConcat | StreamedSets",
    pairs: Sequence[Pair],
    seed: int,
    quiet: bool = True,
    skip_damaged: bool = False,
) -> None:
    """Give the model the heads of the recipe block `heads`, and initialise them as it says, in place.

    data: the training data; of streamed ones, the pairs at the start of the first epoch's shards are used
    pairs: the trained pairs of modalities
    seed: seed for drawing pairs
    skip_damaged: leave out the rest of a streamed shard that is damaged or truncated

    Raises RecipeError if a modality is not trained, or if there is no other modality that its head could be fitted to.
    """
    if not heads:
        return
    for m in heads:
        if not any(m in pair for pair in pairs):
            trained = sorted({n for pair in pairs for n in pair})
            raise RecipeError(f"heads.{m}: {m} is not trained here; the pairs train {', '.join(trained)}")
    fitted = [m for m, head in heads.items() if head.init != "random"]
    partner = {m: _partner(m, heads, pairs) for m in fitted}
    device = model.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for m, head in heads.items():
            hidden = (head.hidden or 2 * model.width) if head.type == "mlp" else 0
            bias = m in fitted or (m in model.heads and linear_layer(model.heads[m]).bias is not None)
            model.replace_head(m, HeadKind(bias, hidden, head.power))
    model.to(device).eval()
    done: set[str] = set()
    for m in fitted:
        if m in done:
            continue
        other = partner[m]
        x, y = _features(model, data, m, other, heads[m].pairs, seed, quiet, skip_damaged)
        x = signed_power(x, heads[m].power)
        if heads[m].init == "ridge":
            weight, bias_values = ridge(x, _embeddings(model, other, y), heads[m].ridge)
            _set(model, m, weight, bias_values)
        else:
            y = signed_power(y, heads[other].power)
            sides = cca(x, y, model.width, (heads[m].ridge, heads[other].ridge))
            for name, (weight, bias_values) in zip((m, other), sides, strict=True):
                _set(model, name, weight, bias_values)
            done.add(other)
    model.invalidate_fingerprint()


def _partner(m: str, heads: Mapping[str, Head], pairs: Sequence[Pair]) -> str:
    """Return the modality that the head of `m` is fitted to: the other one of the first pair that fits."""
    others = [b if a == m else a for a, b in pairs if m in (a, b) and a != b]
    inits = {o: heads[o].init if o in heads else "random" for o in others}
    wanted = "cca" if heads[m].init == "cca" else "random"
    for other in others:
        if inits[other] == wanted:
            if wanted == "cca" and heads[other].pairs != heads[m].pairs:
                raise RecipeError(
                    f"heads.{other}.pairs: cca fits both heads to the same pairs; give heads.{m}.pairs and heads.{other}.pairs the same value"
                )
            return other
    if wanted == "cca":
        raise RecipeError(
            f"heads.{m}.init: cca needs `init: cca` for the other modality of the pair, too ({', '.join(others)})"
        )
    raise RecipeError(
        f"heads.{m}.init: ridge fits this head to the embeddings of {', '.join(others)}, whose own head must not be fitted, too"
    )


@torch.no_grad()
def _features(
    model: "Model",
    data: "WeightedConcat | StreamedSets",
    a: str,
    b: str,
    limit: int,
    seed: int,
    quiet: bool,
    skip_damaged: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the tower outputs [n, C_a], [n, C_b] of at most `limit` rows that have both modalities, in float64 on the CPU.

    The output of a long value is the mean over its windows.
    """
    if isinstance(data, StreamedSets):
        return streamed_features(model, data, (a, b), limit, seed, quiet, skip_damaged)
    rows = np.flatnonzero(data.present[a] & data.present[b])
    if len(rows) > limit:
        rows = np.sort(np.random.default_rng(seed).choice(rows, limit, replace=False))
    found = []
    for m in (a, b):
        _, first, inverse = np.unique(data.labels[m][rows], return_index=True, return_inverse=True)
        preprocess = with_prompt(model.towers[m].preprocess, model.prompts, m)
        outputs = tower_features(model.towers[m], preprocess, data, rows[first].tolist(), model.device, quiet)
        found.append(torch.stack([o.double().mean(0) for o in outputs])[torch.from_numpy(inverse)])
    return found[0], found[1]


@torch.no_grad()
def _embeddings(model: "Model", m: str, features: Tensor) -> Tensor:
    x = features.float()
    if m in model.heads:
        x = model.heads[m].to("cpu")(x)
        model.heads[m].to(model.device)
    return F.normalize(x, dim=-1).double()


def ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """Fit y = weight x + bias by ridge regression; returns weight [D, C] and bias [D].

    x: [n, C] features; y: [n, D] targets
    strength: regularisation, relative to the mean variance of a feature
    """
    centre_x, centre_y = x.mean(0), y.mean(0)
    covariance = _covariance(x - centre_x, strength)
    weight = torch.linalg.solve(covariance, (x - centre_x).T @ (y - centre_y) / len(x)).T
    return weight, centre_y - weight @ centre_x


def cca(x: Tensor, y: Tensor, dim: int, strengths: tuple[float, float]) -> list[tuple[Tensor, Tensor]]:
    """Canonical correlation analysis; returns (weight [dim, C], bias [dim]) of each side.

    x: [n, C], y: [n, E]: features of the two sides
    dim: number of directions; those above min(C, E) are zero
    strengths: regularisation of the two sides, relative to the mean variance of a feature
    """
    x, y, centres = x - x.mean(0), y - y.mean(0), (x.mean(0), y.mean(0))
    whiten_x, whiten_y = (_inverse_root(_covariance(side, s)) for side, s in zip((x, y), strengths, strict=True))
    u, correlations, vh = torch.linalg.svd(whiten_x @ (x.T @ y / len(x)) @ whiten_y, full_matrices=False)
    count = min(dim, len(correlations))
    result = []
    for directions, whiten, centre in ((u.T, whiten_x, centres[0]), (vh, whiten_y, centres[1])):
        weight = torch.zeros(dim, len(centre), dtype=torch.float64)
        weight[:count] = correlations[:count, None] * (directions[:count] @ whiten)
        result.append((weight, -(weight @ centre)))
    return result


def _covariance(centred: Tensor, strength: float) -> Tensor:
    covariance = centred.T @ centred / len(centred)
    return covariance + strength * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(
        len(covariance), dtype=torch.float64
    )


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors @ torch.diag(values.clamp(min=1e-12).rsqrt()) @ vectors.T


@torch.no_grad()
def _set(model: "Model", m: str, weight: Tensor, bias: Tensor) -> None:
    layer = linear_layer(model.heads[m])
    layer.weight.copy_(weight)
    assert layer.bias is not None
    layer.bias.copy_(bias)
