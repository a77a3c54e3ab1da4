"""Re-rank the first results of a search with a scorer of pairs, e.g. a cross-encoder."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mmtune import modalities
from mmtune.contracts import Scorer, Signal
from mmtune.errors import DataError, Rejected
from mmtune.index.collection_results import RerankedResult, SearchResult
from mmtune.mining.verifier import ScorerOf, make_verifier

if TYPE_CHECKING:
    from mmtune.index.item_catalog import Catalog

DEFAULT_DEPTH = 50


@dataclass(frozen=True)
class Rerank:
    """How the results of a search are re-ranked.

    scorer: scores pairs (query, item) of decoded values, or a function (query modality, item modality) that returns such a scorer
    depth: number of results of the vector search that are scored
    """

    scorer: Scorer | ScorerOf
    depth: int = DEFAULT_DEPTH

    def of(self, query: str, item: str) -> Scorer:
        """The scorer for queries of one modality and items of another."""
        return self.scorer(query, item) if callable(self.scorer) and not hasattr(self.scorer, "score") else self.scorer


def load_rerank(spec: "Scorer | str | None", depth: int = DEFAULT_DEPTH) -> Rerank | None:
    """Return the re-ranking for a scorer; None for None.

    spec: an object with score(pairs), the directory of a cross-encoder, a registered scorer, "package.module:Class", or a MODEL

    Raises DataError for a depth below 1, and RecipeError or ModelError if the scorer cannot be loaded.
    """
    if depth < 1:
        raise DataError(f"rerank depth {depth}: must be 1 or more")
    scorer = make_verifier(spec, "rerank")
    return None if scorer is None else Rerank(scorer, depth)


def rerank_results(
    rerank: Rerank, modality: str, signal: Signal, results: list[SearchResult], catalog: "Catalog"
) -> list[SearchResult]:
    """Order the first `rerank.depth` results by the scorer's score, descending; equal scores keep their order.

    Results whose content cannot be scored, because the item has none in the modality that matched, follow the scored ones, and then
    come the results beyond the depth; both in their order.

    modality, signal: the query, decoded
    """
    head, tail = results[: rerank.depth], results[rerank.depth :]
    items = catalog.items([r.id for r in head])
    scored: dict[int, float] = {}
    by_modality: dict[str, list[tuple[int, Signal]]] = {}
    for n, result in enumerate(head):
        item = items.get(result.id)
        if item is None:
            continue
        name = result.modality if result.modality in item.contents else next(iter(item.contents), None)
        if name is None:
            continue
        try:
            by_modality.setdefault(name, []).append((n, modalities.get(name).decode(catalog.read(item, name))))
        except Rejected as e:
            raise DataError(f"rerank: item {result.id!r}: {name}: {e}") from None
    for name, values in by_modality.items():
        scores = np.asarray(rerank.of(modality, name).score([(signal, value) for _, value in values]), np.float64)
        if scores.shape != (len(values),) or not np.isfinite(scores).all():
            raise DataError(
                f"rerank: the scorer must return one finite score for each of {len(values)} pairs; it returned shape "
                f"{scores.shape}, or NaN"
            )
        scored |= {n: float(s) for (n, _), s in zip(values, scores, strict=True)}
    order = sorted(scored, key=lambda n: -scored[n])
    first = [RerankedResult(r.id, scored[n], r.modality, r.group, r.meta, r.score) for n in order for r in [head[n]]]
    return [*first, *(r for n, r in enumerate(head) if n not in scored), *tail]
