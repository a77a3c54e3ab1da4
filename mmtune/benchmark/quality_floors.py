"""Methods of `mmtune bench quality` that need stored features only: the base model, linear probe, nearest neighbours, adapters.

Each returns the vectors of the scored rows and of the candidates. A classifier's vectors are the square roots of its class
probabilities, and a candidate's the unit vector of its class, so that inner products rank classes as the classifier does.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from mmtune.benchmark.quality_features import Sides, candidates, with_vectors
from mmtune.contracts import Embeddings
from mmtune.model.heads import signed_power
from mmtune.recipe.heads_block import Head
from mmtune.relevance.items import take_rows
from mmtune.search.vectors import normalize_rows
from mmtune.training.head_initialisation import cca, ridge

BaseHead: TypeAlias = Callable[[Embeddings], Embeddings]
"""Gives rows of tower outputs their unit vectors in the base model's space."""

NEIGHBOURS = 5
SHARPNESS = 5.5
"""beta of Tip-Adapter, the value of its paper."""
INVERSE_REGULARISATION = 0.1
"""C of scikit-learn's LogisticRegression, on standardised features."""

ADAPTER_RATIO, ADAPTER_EPOCHS, ADAPTER_BATCH, ADAPTER_LR = 0.2, 30, 64, 1e-3
"""CLIP-Adapter: share of the adapter's output in the vectors, passes over the rows, rows in a step, learning rate of Adam."""


class Features(NamedTuple):
    """Stored tower outputs of one set: of the rows that are trained on, of the rows that are scored, and the candidates.

    sides: its modalities
    train_signal, train_language: [N, C], [N, E] outputs for the same training rows
    val: outputs for the scored rows
    candidates: outputs of the language tower for the values of both parts
    heads: how the recipe fits the heads
    """

    sides: Sides
    train_signal: Embeddings
    train_language: Embeddings
    val: Embeddings
    candidates: Embeddings
    heads: Mapping[str, Head]


class Vectors(NamedTuple):
    """What a method made of the scored rows and of the candidates; `within` is used for search among the scored rows."""

    queries: Embeddings
    candidates: Embeddings
    within: Embeddings


def pair_features(
    features: Mapping[str, Mapping[str, Embeddings]],
    sides: Sides,
    shots: np.ndarray | None = None,
    heads: Mapping[str, Head] | None = None,
) -> Features:
    """Align the features of both modalities by rows.

    shots: ids of the training rows to keep; None keeps all
    """
    signal, language = (features["train"][m] for m in sides)
    at = {row: i for i, row in enumerate(language.ids)}
    kept = None if shots is None else set(shots.tolist())
    rows = [
        i for i, row in enumerate(signal.ids) if row in at and signal.labels["group"][i] != 0 and (kept is None or row in kept)
    ]
    other = [at[signal.ids[i]] for i in rows]
    train_signal, train_language = take_rows(signal, np.array(rows)), take_rows(language, np.array(other))
    val = features["val"][sides.signal]
    classes = np.flatnonzero(val.labels["group"] != 0)
    return Features(
        sides,
        train_signal,
        train_language,
        take_rows(val, classes),
        candidates(train_language, features["val"][sides.language]),
        heads or {},
    )


def base(f: Features) -> Vectors:
    """The model before training: heads fitted as the recipe says, or by ridge regression of the signal where it fits none."""
    of_signal, of_language = _base_heads(f)
    queries = of_signal(f.val)
    return Vectors(queries, of_language(f.candidates), queries)


def _base_heads(f: Features) -> tuple[BaseHead, BaseHead]:
    """Fit the heads of the base model as `initialise_heads` does, on the stored features."""
    signal, language = (f.heads.get(m, Head()) for m in f.sides)
    x, y = torch.from_numpy(f.train_signal.vectors).double(), torch.from_numpy(f.train_language.vectors).double()
    if signal.init == "cca":
        strengths = (signal.ridge, language.ridge)
        sides = cca(signed_power(x, signal.power), signed_power(y, language.power), y.shape[1], strengths)
        of_signal, of_language = (_linear(*s, h.power) for s, h in zip(sides, (signal, language), strict=True))
        return of_signal, of_language
    if language.init == "ridge":
        target = torch.nn.functional.normalize(x, dim=1)
        return _as_it_is, _linear(*ridge(signed_power(y, language.power), target, language.ridge), language.power)
    head = signal if signal.init == "ridge" else Head(init="ridge")
    target = torch.nn.functional.normalize(y, dim=1)
    return _linear(*ridge(signed_power(x, head.power), target, head.ridge), head.power), _as_it_is


def _linear(weight: torch.Tensor, bias: torch.Tensor, power: float) -> BaseHead:
    """The function that gives rows the vectors of a head."""

    def apply(rows: Embeddings) -> Embeddings:
        outputs = signed_power(torch.from_numpy(rows.vectors).double(), power)
        return with_vectors(rows, (outputs @ weight.T + bias).numpy())

    return apply


def _as_it_is(rows: Embeddings) -> Embeddings:
    """The rows with the unit vectors of their tower's outputs."""
    return with_vectors(rows, rows.vectors)


def linear_probe(f: Features) -> Vectors:
    """Logistic regression of scikit-learn on standardised features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(f.train_signal.vectors)
    classes, number = np.unique(f.train_signal.labels["group"], return_inverse=True)
    classifier = LogisticRegression(C=INVERSE_REGULARISATION, max_iter=200)
    classifier.fit(scaler.transform(f.train_signal.vectors), number)
    return _of_probabilities(f, classes, classifier.predict_proba(scaler.transform(f.val.vectors)))


def nearest_neighbours(f: Features) -> Vectors:
    """The vote of the 5 nearest training rows by cosine; search among the scored rows is by the features themselves."""
    cosines, classes, number = _cosines_to_training(f)
    near = np.argsort(-cosines, axis=1, kind="stable")[:, :NEIGHBOURS]
    votes = np.zeros((len(cosines), len(classes)))
    np.add.at(votes, (np.arange(len(votes))[:, None], number[near]), np.exp(np.take_along_axis(cosines, near, 1) / 0.07))
    found = _of_probabilities(f, classes, votes / votes.sum(1, keepdims=True))
    return found._replace(within=with_vectors(f.val, f.val.vectors))


def tip_adapter(f: Features) -> Vectors:
    """Tip-Adapter without training (arXiv 2111.03930): the base model's logits plus those of a cache of the training rows.

    Its zero-shot classifier is the base model here, and its weights alpha = 1, beta = 5.5 are those of the paper.
    """
    cosines, classes, number = _cosines_to_training(f)
    start = base(f)
    affinity = np.exp(-SHARPNESS * (1 - cosines))
    cache = affinity @ np.eye(len(classes))[number]
    logits = 100 * start.queries.vectors @ _class_words(start.candidates, classes).T + cache
    e = np.exp(logits - logits.max(1, keepdims=True))
    return _of_probabilities(f, classes, e / e.sum(1, keepdims=True))


def clip_adapter(f: Features) -> Vectors:
    """CLIP-Adapter (arXiv 2110.04544): a bottleneck MLP on the base model's vectors, blended with them at the paper's ratio 0.2.

    The captions' vectors stay as they are. Trained by Adam with cross-entropy over the classes, logit scale 100.
    """
    of_signal, of_language = _base_heads(f)
    seen, scored, language = of_signal(f.train_signal), of_signal(f.val), of_language(f.candidates)
    classes, number = np.unique(f.train_signal.labels["group"], return_inverse=True)
    x, target = torch.from_numpy(seen.vectors).float(), torch.from_numpy(number)
    words = torch.from_numpy(_class_words(language, classes)).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = x.shape[1]
        bottleneck = torch.nn.Sequential(
            torch.nn.Linear(width, width // 4, bias=False), torch.nn.ReLU(), torch.nn.Linear(width // 4, width, bias=False)
        )
        optimizer = torch.optim.Adam(bottleneck.parameters(), lr=ADAPTER_LR)
        for _ in range(ADAPTER_EPOCHS):
            for rows in torch.randperm(len(x)).split(ADAPTER_BATCH):
                logits = 100 * _adapted(bottleneck, x[rows]) @ words.T
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, target[rows]).backward()
                optimizer.step()
    with torch.no_grad():
        queries = with_vectors(f.val, _adapted(bottleneck, torch.from_numpy(scored.vectors).float()).numpy())
    return Vectors(queries, language, queries)


def _class_words(candidates: Embeddings, classes: np.ndarray) -> np.ndarray:
    """The vector of the first candidate of each class [classes, D]."""
    group = candidates.labels["group"]
    return candidates.vectors[np.array([int(np.flatnonzero(group == c)[0]) for c in classes])]


def _adapted(bottleneck: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Unit vectors [N, D] of the blend of the adapter's output and its input."""
    return torch.nn.functional.normalize(ADAPTER_RATIO * torch.relu(bottleneck(x)) + (1 - ADAPTER_RATIO) * x, dim=1)


def _cosines_to_training(f: Features) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (cosines [Q, N], classes, class number of each training row [N])."""
    classes, number = np.unique(f.train_signal.labels["group"], return_inverse=True)
    cosines = normalize_rows(f.val.vectors).astype(np.float64) @ normalize_rows(f.train_signal.vectors).T
    return cosines, classes, number


def _of_probabilities(f: Features, classes: np.ndarray, probabilities: np.ndarray) -> Vectors:
    """Vectors that rank the candidates as the class probabilities [Q, classes] do."""
    queries = with_vectors(f.val, np.sqrt(probabilities))
    group = f.candidates.labels["group"]
    vectors = (group[:, None] == classes[None, :]).astype(np.float32)
    return Vectors(queries, with_vectors(f.candidates, vectors), queries)


FLOORS: dict[str, Callable[[Features], Vectors]] = {
    "base": base,
    "linear probe": linear_probe,
    "nearest neighbours": nearest_neighbours,
    "tip-adapter": tip_adapter,
    "clip-adapter": clip_adapter,
}
"""Methods that need stored features only."""
